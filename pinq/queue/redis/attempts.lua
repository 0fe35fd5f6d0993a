-- How an attempt fails: its error is kept, and the job is retried or dead.

-- Store an event: in msgpack its id, type, source, subject and data.
local function announce(packed)
  redis.call('XADD', KEY.events, '*', 'time_ms', digits(NOW), 'event', packed)
end

-- Tell of a job that died. `seed` is the call's own: the event's id is like no other's.
local function announce_dead(queue, job, class, message, seed)
  local hex = redis.sha1hex(seed .. job.id)
  local id = string.sub(hex, 1, 8) .. '-' .. string.sub(hex, 9, 12)
    .. '-8' .. string.sub(hex, 14, 16) .. '-a' .. string.sub(hex, 18, 20)
    .. '-' .. string.sub(hex, 21, 32)
  local data = '{"pipeline":' .. cjson.encode(queue.name) .. ',"attempt":' .. job.attempts
    .. ',"reason":{"class":' .. cjson.encode(class) .. ',"message":' .. cjson.encode(message)
    .. '},"uri":' .. cjson.encode(job.uri) .. '}'
  announce(cmsgpack.pack({ id, 'pinq.job.dead', queue.source, job.key, data }))
end

-- Write down one failed attempt; returns whether the job is dead now. It waits until
-- `retry_at_ms`; `ends` makes it dead whatever attempts it has left.
local function fail(queue, job, class, message, seed, retry_at_ms, ends, suspect)
  leave(job)
  redis.call('RPUSH', ERRORS .. job.id,
    digits(NOW) .. ' ' .. job.attempts .. ' ' .. class .. ' ' .. message)
  redis.call('HSET', KEY.failed, job.id, class)
  if not ends and job.attempts < job.max_attempts then
    await(job, retry_at_ms, job.attempts, suspect)
    return false
  end
  redis.call('HSET', KEY.ended, job.id, job.attempts .. ' ' .. digits(job.run_at_ms) .. ' ')
  redis.call('ZADD', KEY.dead, job.id, job.id)
  redis.call('ZADD', KEY.died, digits(NOW), job.id)
  redis.call('HINCRBY', KEY.classes, class, 1)
  announce_dead(queue, job, class, message, seed)
  return true
end
