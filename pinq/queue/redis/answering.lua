-- The verdicts on a lease's jobs.

-- Notes that workers append are for people; the newest are kept, in bytes.
local STATUS_LIMIT = 4000

local function append_status(id, note)
  if note == '' then
    return
  end
  local status = (redis.call('HGET', KEY.status, id) or '') .. '\n' .. note
  status = string.gsub(string.gsub(status, '^\n+', ''), '\n+$', '')
  if #status > STATUS_LIMIT then
    status = string.gsub(string.sub(status, -STATUS_LIMIT), '^[\128-\191]+', '') -- half a character
  end
  redis.call('HSET', KEY.status, id, status)
end

-- Of ids, what `leased` says of those that the token holds; false for the others.
local function held_by(token, ids)
  local held = asked('HMGET', KEY.leased, ids)
  for index, entry in ipairs(held) do
    if entry and string.sub(entry, 1, #token) ~= token then
      held[index] = false
    end
  end
  return held
end

-- End an attempt other than well. Returns 'snoozed', 'retried' or 'dead'.
local function answer_one(queue, id, verdict, seed)
  local job = load({ id })[1]
  if verdict[2] == 'snooze' then
    leave(job)
    await(job, NOW + verdict[4], job.attempts - 1)
    return 'snoozed'
  end
  local class, message, delay_ms, body = unpack(verdict, 4)
  local retry_at_ms = delay_ms and NOW + delay_ms
  local died = fail(queue, job, class, message, seed, retry_at_ms, verdict[2] == 'dead')
  if body then
    redis.call('HSET', KEY.body, id, body)
  end
  return died and 'dead' or 'retried'
end

-- End the attempts of those that succeeded; `held` is what `leased` says of each.
local function succeed(queue, token, ids, held)
  local now, scores, ended = digits(NOW), {}, {}
  for index, id in ipairs(ids) do
    local at = 2 * index
    scores[at - 1], scores[at] = now, id
    ended[at - 1], ended[at] = id, string.sub(held[id], #token + 2, -#PAD) .. queue.generation
  end
  many('HDEL', KEY.leased, ids)
  many('ZADD', KEY.succeeded, scores)
  many('HSET', KEY.ended, ended)
  shrink(token, #ids)
end

-- End attempts as they are told: {id, kind, status, ...}, where kind says what follows, or an id
-- alone, of a job that succeeded and has nothing to tell.
--   'succeeded'  event or false, as `announce` takes it
--   'retry'      class, message, delay_ms, body or false
--   'snooze'     delay_ms
--   'dead'       class, message
-- Returns how many succeeded, were retried, snoozed and died, and the refused ids.
--
-- Each first takes jobs out of `leased`: Redis then lets a script go on although memory is short,
-- so that what is there can be worked off.
local function answer(queue, token, verdicts, seed)
  local ids = {}
  for index, verdict in ipairs(verdicts) do
    ids[index] = type(verdict) == 'string' and verdict or verdict[1]
  end
  local held, succeeded, refused, told = {}, {}, {}, {}
  for index, entry in ipairs(held_by(token, ids)) do
    local id, verdict = ids[index], verdicts[index]
    held[id] = entry
    if not entry then
      refused[#refused + 1] = id
    elseif type(verdict) == 'string' then
      succeeded[#succeeded + 1] = id
    else
      told[#told + 1] = verdict
      if verdict[2] == 'succeeded' then
        succeeded[#succeeded + 1] = id
      end
    end
  end
  succeed(queue, token, succeeded, held)
  local count = { retried = 0, snoozed = 0, dead = 0 }
  for _, verdict in ipairs(told) do
    local id, kind, status = unpack(verdict)
    if kind ~= 'succeeded' then
      local how = answer_one(queue, id, verdict, seed)
      count[how] = count[how] + 1
    elseif verdict[4] then
      announce(verdict[4])
    end
    append_status(id, status)
  end
  if #refused < #verdicts then
    ring()
  end
  return { #succeeded, count.retried, count.snoozed, count.dead, refused }
end
