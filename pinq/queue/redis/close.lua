-- with: jobs
-- Let nothing in or out any more, before the queue is deleted. Argument: force.
-- Replies 'absent', 'unfinished' or 'closed'.

local force = ARGS[1]
if not read_queue() then
  return reply('absent')
end
local unfinished = redis.call('EXISTS', KEY.leased, KEY.dead)
for priority = 1, 9 do
  unfinished = unfinished + redis.call('EXISTS', WAITING .. priority)
end
if unfinished > 0 and not force then
  return reply('unfinished')
end
redis.call('HSET', KEYS[1], 'paused', 1, 'draining', 1)
for _, token in ipairs(redis.call('ZRANGE', KEY.leases, 0, -1)) do
  end_lease(token)
end
ring()
return reply('closed')
