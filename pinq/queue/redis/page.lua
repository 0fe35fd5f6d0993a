-- with: jobs choosing
-- Jobs that a filter means, with their errors. Arguments: filter, limit, span.
-- Replies with rows of the fields of Job without its queue, and the id to go on after, or false.

local filter, limit, span = unpack(ARGS)
local found, after = choose(filter, limit, span)
local rows = {}
for index, job in ipairs(found) do
  rows[index] = {
    job.id, job.key, job.uri, job.state, job.priority, job.run_at_ms, job.attempts,
    job.max_attempts, job.enqueued_at_ms, job.finished_at_ms or false,
    redis.call('HGET', KEY.body, job.id) or '', redis.call('HGET', KEY.progress, job.id) or '',
    redis.call('HGET', KEY.status, job.id) or '',
    job.class and redis.call('LRANGE', ERRORS .. job.id, 0, -1) or {},
  }
end
return reply({ rows, after })
