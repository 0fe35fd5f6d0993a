-- with: jobs attempts controls answering leasing
-- Give jobs back. Arguments: token, their ids or false for all. Replies with how many.

local token, given = unpack(ARGS)
local ids = {}
if given then
  local seen = {}
  for _, id in ipairs(given) do
    if not seen[id] then
      seen[id], ids[#ids + 1] = true, id
    end
  end
else
  ids = ids_of(token)
end
local worker = redis.call('HGET', LEASE .. token, 'worker')
local suspect = worker and redis.call('HGET', KEY.solo, worker) == token
local released = 0
for index, entry in ipairs(held_by(token, ids)) do
  if entry then
    local job = load({ ids[index] })[1]
    leave(job)
    await(job, job.run_at_ms, job.attempts - 1, suspect)
    released = released + 1
    ring()
  end
end
return reply(released)
