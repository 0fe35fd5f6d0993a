-- with: jobs
-- The jobs after an id, with all that is known of them. Arguments: the id, limit.
-- Replies with rows of id, what was enqueued, state, due, attempts, whether suspect, end or false,
-- generation or false, body, progress, status, errors.

local after, limit = unpack(ARGS)
local ids = redis.call('ZRANGEBYSCORE', KEY.all, '(' .. after, '+inf', 'LIMIT', 0, limit)
local written = {}
for index, text in ipairs(asked('HMGET', KEY.jobs, ids)) do
  written[ids[index]] = text
end
local rows = {}
for index, job in ipairs(load(ids)) do
  rows[index] = {
    job.id, written[job.id], job.state, job.run_at_ms, job.attempts, job.suspect == '1',
    job.finished_at_ms or false, job.state == SUCCEEDED and job.generation,
    redis.call('HGET', KEY.body, job.id) or '', redis.call('HGET', KEY.progress, job.id) or '',
    redis.call('HGET', KEY.status, job.id) or '',
    job.class and redis.call('LRANGE', ERRORS .. job.id, 0, -1) or {},
  }
end
return reply(rows)
