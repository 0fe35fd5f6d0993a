-- with: jobs
-- Delete a batch of a closed queue's jobs, in the end the queue; its events stay.
-- Argument: limit. Replies with how many jobs.

local ids = redis.call('ZRANGE', KEY.all, 0, ARGS[1] - 1)
for _, job in ipairs(load(ids)) do
  forget(job)
end
if #ids == 0 then
  redis.call('DEL', KEYS[1])
end
ring()
return reply(#ids)
