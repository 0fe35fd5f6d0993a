-- with: jobs
-- Let every lease of a worker expire now. Argument: the worker. Replies with how many those were.

local ended = 0
if redis.call('HEXISTS', KEY.held, ARGS[1]) == 1 then
  for _, token in ipairs(redis.call('ZRANGE', KEY.leases, 0, -1)) do
    if redis.call('HGET', LEASE .. token, 'worker') == ARGS[1] then
      redis.call('ZADD', KEY.leases, digits(NOW), token)
      ended = ended + 1
      ring()
    end
  end
end
return reply(ended)
