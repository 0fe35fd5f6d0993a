-- with: jobs controls
-- When `lease` could next find something; false: not before somebody changes something.

local queue = read_queue()
if not queue then
  return reply(false)
end
local first = redis.call('ZRANGE', KEY.leases, 0, 0, 'WITHSCORES')[2]
local found = first and tonumber(first)
local admits = admits_at_ms(queue)
if admits then
  for priority = 1, 9 do
    local due = redis.call('ZRANGE', WAITING .. priority, 0, 0, 'WITHSCORES')[2]
    if due then
      local at = math.max(tonumber(due), admits)
      found = math.min(found or at, at)
    end
  end
end
return reply(found or false)
