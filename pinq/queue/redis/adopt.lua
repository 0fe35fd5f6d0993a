-- with: jobs moving
-- Take in jobs, those excepted that are there. Argument: rows of id, key, what was enqueued, state,
-- priority, due, attempts, whether suspect, end or '', generation, body, progress, status, errors,
-- class of the last or false.

local rows, keys = ARGS[1], {}
for index, row in ipairs(rows) do
  keys[index] = row[2]
end
local known = asked('HMGET', KEY.keys, keys)
local last = tonumber(redis.call('HGET', KEYS[1], 'last_id') or 0)

-- What goes into each key, as names and values by turns.
local facts = {}
local function put(key, first, second)
  local list = facts[key] or {}
  facts[key] = list
  list[#list + 1], list[#list + 2] = first, second
end
local hashes, sets = {}, {}
local function hset(key, id, value)
  hashes[key] = true
  put(key, id, value)
end
local function zadd(key, score, id)
  sets[key] = true
  put(key, score, id)
end

for index, row in ipairs(rows) do
  local id, key, written, state, priority, run_at_ms, attempts, suspect = unpack(row, 1, 8)
  local finished_at_ms, generation, body, progress, status, errors, class = unpack(row, 9)
  if not known[index] then
    last = math.max(last, tonumber(id))
    hset(KEY.keys, key, id)
    hset(KEY.jobs, id, written)
    zadd(KEY.all, id, id)
    if state == PENDING then
      zadd(WAITING .. priority, digits(run_at_ms), id)
      if attempts > 0 then
        hset(KEY.tried, id, attempts .. ' ' .. (suspect and 1 or 0))
      end
    elseif state == LEASED then
      hset(KEY.leased, id, entry(PARTED, attempts, run_at_ms))
    else
      hset(KEY.ended, id, attempts .. ' ' .. digits(run_at_ms) .. ' '
        .. (state == SUCCEEDED and generation or ''))
      if state == SUCCEEDED then
        zadd(KEY.succeeded, digits(finished_at_ms), id)
      else
        zadd(KEY.dead, id, id)
        zadd(KEY.died, digits(finished_at_ms), id)
        redis.call('HINCRBY', KEY.classes, class, 1)
      end
    end
    for name, value in pairs({ body = body, progress = progress, status = status }) do
      if value ~= '' then
        hset(KEY[name], id, value)
      end
    end
    if class then
      hset(KEY.failed, id, class)
      many('RPUSH', ERRORS .. id, errors)
    end
  end
end

for key in pairs(hashes) do
  many('HSET', key, facts[key])
end
for key in pairs(sets) do
  many('ZADD', key, facts[key])
end
redis.call('HSET', KEYS[1], 'last_id', digits(last))
return reply(true)
