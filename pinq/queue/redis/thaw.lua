-- with: jobs moving
-- Tell a frozen queue what it was told before, and forget that it was frozen.

local told = redis.call('HMGET', MOVING, 'paused', 'draining')
if told[1] then
  redis.call('HSET', KEYS[1], 'paused', told[1], 'draining', told[2])
  ring()
end
redis.call('DEL', MOVING, MOVING .. ':leases')
return reply(true)
