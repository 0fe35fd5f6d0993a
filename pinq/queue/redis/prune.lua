-- with: jobs
-- Delete jobs that ended before a time. Arguments: ms since success, ms since death, limit.
-- Replies with how many.

local succeeded_ms, dead_ms, limit = unpack(ARGS)
local done = 0
local function sweep(ended, age_ms)
  local before = '(' .. digits(NOW - age_ms)
  local ids = redis.call('ZRANGEBYSCORE', ended, '-inf', before, 'LIMIT', 0, limit - done)
  for _, job in ipairs(load(ids)) do
    forget(job)
    done = done + 1
  end
end
sweep(KEY.succeeded, succeeded_ms)
sweep(KEY.died, dead_ms)
return reply(done)
