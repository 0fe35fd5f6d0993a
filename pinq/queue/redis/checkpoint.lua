-- with: jobs attempts answering
-- Write down how far jobs have come. Arguments: token, ms to renew the lease for or false,
-- checkpoints: id, status, body, progress, run_at_ms, the last three false where they stay.
-- Replies with the ids that the token does not hold.

local token, ms, checkpoints = unpack(ARGS)
local refused = {}
for _, checkpoint in ipairs(checkpoints) do
  local id, status, body, progress, run_at_ms = unpack(checkpoint)
  if held_by(token, { id })[1] then
    append_status(id, status)
    if body then
      redis.call('HSET', KEY.body, id, body)
    end
    if progress then
      redis.call('HSET', KEY.progress, id, progress)
    end
    if run_at_ms then
      local job = load({ id })[1]
      leave(job)
      await(job, run_at_ms, 0)
    end
    ring()
  else
    refused[#refused + 1] = id
  end
end
if ms and redis.call('EXISTS', LEASE .. token) == 1 then
  redis.call('ZADD', KEY.leases, digits(NOW + ms), token)
end
return reply(refused)
