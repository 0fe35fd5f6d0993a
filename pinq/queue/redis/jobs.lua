-- The keys of a queue, and a job's place in them.
--
-- KEYS[1] is 'pinq:{pins}:queue'. All other keys begin likewise, so that they share its slot. A
-- fact about jobs is one hash or sorted set, of ids, so that a batch of jobs takes one command a
-- fact; a job's state is which of them it is in.
--
--   queue          hash: name, source, signals, generation, last_id; what it was told; its bucket
--   keys           hash: a job's key -> its id
--   jobs           hash: '<enqueued_at_ms> <msgpack>', of what was enqueued and never changes
--   all            sorted set: by arrival
--   pending:<1-9>  sorted sets: those of a priority that wait, by the time they are due
--   tried          hash: of those that wait, if ever leased: '<attempts> <suspect>'
--   leased         hash: '<token> <attempts> <run_at_ms> '; whoever has another token is refused
--   succeeded      sorted set: by the time they ended
--   dead, died     sorted sets: the dead by arrival, and by the time they ended
--   ended          hash: of both, '<attempts> <run_at_ms> <generation>'
--   body, progress, status   hashes: absent where empty
--   failed         hash: the class of the last failure
--   errors:<id>    list: failures, '<at_ms> <attempt> <class> <message>'
--   classes        hash: a class of failure -> how many are dead of it
--   leases         sorted set: tokens, by expiry
--   lease:<token>  hash: worker, ids, how many are left of them
--   held           hash: worker -> how many leases it holds
--   solo           hash: worker -> the token of its lease of a suspect
--   events         stream: the outbox
--
-- Ids have 16 digits, so that sorted sets keep jobs that are due at one time in order of arrival.

local PENDING, LEASED, SUCCEEDED, DEAD = 0, 1, 2, 3

local BASE = string.sub(KEYS[1], 1, -6)
local KEY = {}
for _, name in ipairs({
  'keys', 'jobs', 'all', 'tried', 'leased', 'succeeded', 'dead', 'died', 'ended', 'body',
  'progress', 'status', 'failed', 'classes', 'leases', 'held', 'solo', 'events',
}) do
  KEY[name] = BASE .. name
end
local WAITING, ERRORS, LEASE = BASE .. 'pending:', BASE .. 'errors:', BASE .. 'lease:'

-- A time as Redis is to keep it: Lua alone would write 1.7e+12.
local function digits(number)
  return string.format('%d', number)
end

-- Ends the entries of `leased`: a hash whose values are short is a list to Redis, however often
-- it is asked for each of some hundreds.
local PAD = string.rep(' ', 65)

-- Lua passes some thousands of values to a command at most.
local CHUNK = 4000

-- One command on any number of values; no command on none.
local function many(command, key, values)
  for first = 1, #values, CHUNK do
    redis.call(command, key, unpack(values, first, math.min(first + CHUNK - 1, #values)))
  end
end

-- What a command answers for each of any number of values.
local function asked(command, key, values)
  if #values <= CHUNK and #values > 0 then
    return redis.call(command, key, unpack(values))
  end
  local answers = {}
  for first = 1, #values, CHUNK do
    local last = math.min(first + CHUNK - 1, #values)
    for _, answer in ipairs(redis.call(command, key, unpack(values, first, last))) do
      answers[#answers + 1] = answer
    end
  end
  return answers
end

-- What is common to all jobs of the queue; nil where there is none.
local function read_queue()
  local row = redis.call('HMGET', KEYS[1], 'name', 'source', 'generation', 'paused', 'draining',
    'rate', 'in_flight', 'allowance', 'allowance_at_ms')
  if not row[1] then
    return nil
  end
  return {
    name = row[1], source = row[2], generation = row[3],
    paused = row[4] == '1', draining = row[5] == '1',
    rate = tonumber(row[6]), in_flight = tonumber(row[7]),
    allowance = tonumber(row[8]), allowance_at_ms = tonumber(row[9]),
  }
end

local function make_queue(name, source, signals)
  redis.call('HSET', KEYS[1], 'name', name, 'source', source, 'signals', signals, 'generation', 0,
    'paused', 0, 'draining', 0, 'rate', '', 'in_flight', '', 'allowance', 0, 'allowance_at_ms', 0)
end

-- Jobs without what may be large; ids that there are none of are left out.
local function load(ids)
  local written, leased = asked('HMGET', KEY.jobs, ids), asked('HMGET', KEY.leased, ids)
  local succeeded, died = asked('ZMSCORE', KEY.succeeded, ids), asked('ZMSCORE', KEY.died, ids)
  local tried, ended = asked('HMGET', KEY.tried, ids), asked('HMGET', KEY.ended, ids)
  local failed = asked('HMGET', KEY.failed, ids)
  local jobs = {}
  for index, id in ipairs(ids) do
    if written[index] then
      local enqueued_at_ms, packed = string.match(written[index], '^(%d+) (.*)$')
      local fields = cmsgpack.unpack(packed)
      local job = {
        id = id, key = fields[1], uri = fields[2], priority = fields[6],
        max_attempts = fields[7], enqueued_at_ms = enqueued_at_ms, class = failed[index],
      }
      local attempts, run_at_ms = 0, nil
      if leased[index] then
        job.state = LEASED
        job.token, attempts, run_at_ms = string.match(leased[index], '^(%S+) (%d+) (%d+)')
      elseif succeeded[index] or died[index] then
        job.state = succeeded[index] and SUCCEEDED or DEAD
        job.finished_at_ms = succeeded[index] or died[index]
        attempts, run_at_ms, job.generation = string.match(ended[index], '^(%d+) (%d+) +(%d*)$')
      else
        job.state = PENDING
        run_at_ms = redis.call('ZSCORE', WAITING .. job.priority, id)
        if tried[index] then
          attempts, job.suspect = string.match(tried[index], '^(%d+) (%d)$')
        end
      end
      job.attempts, job.run_at_ms = tonumber(attempts), tonumber(run_at_ms)
      jobs[#jobs + 1] = job
    end
  end
  return jobs
end

-- A lease is over; whoever still has its token is refused.
local function end_lease(token)
  local worker = redis.call('HGET', LEASE .. token, 'worker')
  redis.call('ZREM', KEY.leases, token)
  redis.call('DEL', LEASE .. token)
  if redis.call('HINCRBY', KEY.held, worker, -1) <= 0 then
    redis.call('HDEL', KEY.held, worker)
  end
  if redis.call('HGET', KEY.solo, worker) == token then
    redis.call('HDEL', KEY.solo, worker)
  end
end

-- So many jobs have left a lease, if it is there; without any it is over.
local function shrink(token, count)
  if count > 0 and redis.call('EXISTS', LEASE .. token) == 1
    and redis.call('HINCRBY', LEASE .. token, 'left', -count) <= 0 then
    end_lease(token)
  end
end

-- Take a job out of the state that it is in.
local function leave(job)
  if job.state == PENDING then
    redis.call('ZREM', WAITING .. job.priority, job.id)
    redis.call('HDEL', KEY.tried, job.id)
  elseif job.state == LEASED then
    redis.call('HDEL', KEY.leased, job.id)
    shrink(job.token, 1)
  else
    redis.call('HDEL', KEY.ended, job.id)
    redis.call('ZREM', KEY.succeeded, job.id)
    if redis.call('ZREM', KEY.died, job.id) == 1 then
      redis.call('ZREM', KEY.dead, job.id)
      if redis.call('HINCRBY', KEY.classes, job.class, -1) <= 0 then
        redis.call('HDEL', KEY.classes, job.class)
      end
    end
  end
end

-- Let a job that has left its state wait until a time.
local function await(job, run_at_ms, attempts, suspect)
  redis.call('ZADD', WAITING .. job.priority, digits(run_at_ms), job.id)
  if attempts > 0 then
    redis.call('HSET', KEY.tried, job.id, attempts .. ' ' .. (suspect and 1 or 0))
  end
end

-- Delete a job and all that is known of it.
local function forget(job)
  leave(job)
  redis.call('ZREM', KEY.all, job.id)
  redis.call('HDEL', KEY.keys, job.key)
  for _, name in ipairs({ 'jobs', 'body', 'progress', 'status', 'failed' }) do
    redis.call('HDEL', KEY[name], job.id)
  end
  redis.call('DEL', ERRORS .. job.id)
end
