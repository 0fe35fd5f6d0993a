-- Who gets which jobs next.

-- When so many jobs have been taken back in one call, what is left over is for the next.
local ENOUGH = 1000

-- The ids that a lease was of, as far as it still holds them.
local function ids_of(token)
  local all, ids = redis.call('HGET', LEASE .. token, 'ids') or '', {}
  for id in string.gmatch(all, string.rep('%d', 16)) do
    ids[#ids + 1] = id
  end
  local mine = {}
  for index, entry in ipairs(held_by(token, ids)) do
    if entry then
      mine[#mine + 1] = ids[index]
    end
  end
  return mine
end

-- End expired leases; their jobs become suspects, or dead.
local function take_back(queue, seed)
  local done = 0
  local expired = redis.call('ZRANGEBYSCORE', KEY.leases, '-inf', digits(NOW), 'LIMIT', 0, 100)
  for _, token in ipairs(expired) do
    if done >= ENOUGH then
      return
    end
    local worker = redis.call('HGET', LEASE .. token, 'worker')
    local jobs = load(ids_of(token))
    for _, job in ipairs(jobs) do
      local message = 'the lease expired; its worker was ' .. worker
      fail(queue, job, 'worker_crash', message, seed, job.run_at_ms, false, true)
    end
    done = done + #jobs
    ring()
  end
end

-- Jobs that are due, the first to lease first: rows of priority, run_at_ms, id.
local function due(limit)
  local rows, ids = {}, {}
  for priority = 1, 9 do
    if #ids >= limit then
      break
    end
    local some = redis.call('ZRANGEBYSCORE', WAITING .. priority, '-inf', digits(NOW),
      'WITHSCORES', 'LIMIT', 0, limit - #ids)
    for index = 1, #some, 2 do
      ids[#ids + 1] = some[index]
      rows[#ids] = { priority, some[index + 1], some[index] }
    end
  end
  return rows, ids
end

-- What may be leased: rows of priority, run_at_ms, id, suspect, attempt, what was enqueued, body
-- and progress. `seed` of nil takes nothing back. Also, whether the worker holds a lease.
local function offered(queue, want, seed)
  if seed then
    take_back(queue, seed)
  end
  local held = want.held or redis.call('HEXISTS', KEY.held, want.worker) == 1
  if want.solo or redis.call('HEXISTS', KEY.solo, want.worker) == 1 then
    return {}, held
  end
  local limit = admitted(queue, want.limit, not seed)
  if limit == 0 then
    return {}, held
  end
  local rows, ids = due(limit)
  local written, tried = asked('HMGET', KEY.jobs, ids), asked('HMGET', KEY.tried, ids)
  local body, progress = asked('HMGET', KEY.body, ids), asked('HMGET', KEY.progress, ids)
  for index, row in ipairs(rows) do
    local attempts, suspect = 0, false
    if tried[index] then
      attempts, suspect = string.match(tried[index], '^(%d+) (%d)$')
      suspect = suspect == '1'
    end
    row[4], row[5], row[6] = suspect, attempts + 1, written[index]
    row[7], row[8] = body[index] or '', progress[index] or ''
  end
  return rows, held
end

-- Lease jobs as want says; returns the expiry and the rows, or false.
local function lease(queue, want, seed)
  local rows, held = offered(queue, want, seed)
  if #rows == 0 then
    return false
  end
  local solo = rows[1][4]
  if solo and held then
    return false -- until what this worker holds is answered
  end
  local token, chosen, ids, leased, places = want.token, {}, {}, {}, {}
  for index, row in ipairs(rows) do
    local priority, run_at_ms, id, suspect, attempt = unpack(row)
    if index > 1 and (solo or suspect) then
      break
    end
    chosen[index], ids[index] = row, id
    leased[2 * index - 1] = id
    leased[2 * index] = token .. ' ' .. attempt .. ' ' .. run_at_ms .. PAD
    local place = places[priority] or {}
    places[priority] = place
    place[#place + 1] = id
  end
  for priority, leaving in pairs(places) do
    many('ZREM', WAITING .. priority, leaving)
  end
  many('HDEL', KEY.tried, ids)
  many('HSET', KEY.leased, leased)
  redis.call('HSET', LEASE .. token, 'worker', want.worker, 'left', #ids, 'ids', table.concat(ids))
  redis.call('ZADD', KEY.leases, digits(NOW + want.ms), token)
  redis.call('HINCRBY', KEY.held, want.worker, 1)
  if solo then
    redis.call('HSET', KEY.solo, want.worker, token)
  end
  spend(queue, #ids)
  return { NOW + want.ms, chosen }
end
