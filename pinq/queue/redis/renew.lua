-- with: jobs
-- Let a lease expire later. Arguments: token, ms. Replies whether it is held.

local token, ms = unpack(ARGS)
local held = redis.call('ZSCORE', KEY.leases, token)
if held then
  redis.call('ZADD', KEY.leases, digits(NOW + ms), token)
end
return reply(held and true)
