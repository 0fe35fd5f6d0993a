-- with: jobs attempts controls answering leasing moving
-- Pause and drain a queue, keep what it was told, and part leased jobs from their leases.
-- Argument: whether only to look. Replies with the leases that are held: worker, expiry, whether
-- of a suspect, keys.

local only_look = ARGS[1]
local queue = read_queue()
if not queue then
  return reply({})
end

if not only_look and redis.call('EXISTS', MOVING) == 0 then
  redis.call('HSET', MOVING, 'paused', queue.paused and 1 or 0,
    'draining', queue.draining and 1 or 0)
  redis.call('HSET', KEYS[1], 'paused', 1, 'draining', 1)
  ring()
end

local leases = {}
local tokens = redis.call('ZRANGE', KEY.leases, 0, -1, 'WITHSCORES')
for index = 1, #tokens, 2 do
  local token = tokens[index]
  local worker = redis.call('HGET', LEASE .. token, 'worker')
  local ids, keys, parted = ids_of(token), {}, {}
  for place, job in ipairs(load(ids)) do
    keys[place] = job.key
    parted[2 * place - 1], parted[2 * place] = job.id, entry(PARTED, job.attempts, job.run_at_ms)
  end
  local solo = redis.call('HGET', KEY.solo, worker) == token
  local lease = { worker, tokens[index + 1], solo, keys }
  leases[#leases + 1] = lease
  if not only_look then
    redis.call('RPUSH', MOVING .. ':leases', cmsgpack.pack(lease))
    many('HSET', KEY.leased, parted)
    end_lease(token)
  end
end
return reply(leases)
