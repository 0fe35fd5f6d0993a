-- with: jobs
-- Add jobs, all or none. Arguments: force, the queue's name if it is to be made, jobs: key,
-- priority, run_at_ms or 0, what never changes in msgpack, body, status.
-- Replies with a number a job, 4 * outcome + state; or 'absent', or 'draining'.

local ENQUEUED, DUPLICATE, RERUN = 0, 4, 8

local force, name, jobs = unpack(ARGS)
local queue = read_queue()
if not queue then
  if not name then
    return reply('absent')
  end
  make_queue(name, '/pinq/' .. name, '')
  queue = read_queue()
end
if queue.draining then
  return reply('draining')
end

local wanted, known, existing = {}, {}, {}
for index, job in ipairs(jobs) do
  wanted[index] = job[1]
end
for _, id in ipairs(asked('HMGET', KEY.keys, wanted)) do
  if id then
    known[#known + 1] = id
  end
end
for _, job in ipairs(load(known)) do
  existing[job.key] = job
end

-- A job of that key is there, and is to run again.
local function runs_again(job)
  local stale = job.state == SUCCEEDED and job.generation ~= queue.generation
  return stale or (force and (job.state == SUCCEEDED or job.state == DEAD))
end

-- Ids are the server's microseconds, whatever the time is said to be: so those of several queues
-- can be merged in order of arrival.
local last = tonumber(redis.call('HGET', KEYS[1], 'last_id') or 0)
last = math.max(last, TIME[1] * 1000000 + TIME[2])

local now = digits(NOW)
local keys, written, arrivals, waiting, answers = {}, {}, {}, {}, {}
for index, job in ipairs(jobs) do
  local key, priority, run_at_ms, packed, body, status = unpack(job)
  local earlier = existing[key]
  local again = earlier and runs_again(earlier)
  if earlier and not again then
    answers[index] = DUPLICATE + earlier.state
  else
    local id, count = nil, #arrivals
    if again then
      forget(earlier)
      id = earlier.id
    else
      last = last + 1
      id = string.format('%016d', last)
    end
    keys[count + 1], keys[count + 2] = key, id
    written[count + 1], written[count + 2] = id, now .. ' ' .. packed
    arrivals[count + 1], arrivals[count + 2] = id, id
    local place = waiting[priority] or {}
    waiting[priority] = place
    place[#place + 1] = run_at_ms > 0 and digits(run_at_ms) or now
    place[#place + 1] = id
    if body ~= '' then
      redis.call('HSET', KEY.body, id, body)
    end
    if status ~= '' then
      redis.call('HSET', KEY.status, id, status)
    end
    existing[key] = { state = PENDING }
    answers[index] = (again and RERUN or ENQUEUED) + PENDING
  end
end

many('HSET', KEY.keys, keys)
many('HSET', KEY.jobs, written)
many('ZADD', KEY.all, arrivals)
for priority, place in pairs(waiting) do
  many('ZADD', WAITING .. priority, place)
  ring()
end
redis.call('HSET', KEYS[1], 'last_id', digits(last))
return reply(answers)
