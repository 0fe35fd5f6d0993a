-- Which jobs a filter means.
--
-- The filter comes as a table in which absent means any: states and priorities as lists, error,
-- uri and body as lists of Lua patterns that must follow one another, scheduled. `ids` are those
-- to look at, in order; without them, those after `after` and not above `upto`.

local function set_of(list)
  if not list then
    return nil
  end
  local set = {}
  for _, value in ipairs(list) do
    set[value] = true
  end
  return set
end

-- Without backtracking: no pattern of a user's can hold the server up.
local function matches(text, pieces)
  local from = 1
  for _, piece in ipairs(pieces) do
    local _, last = string.find(text, piece, from)
    if not last then
      return false
    end
    from = last + 1
  end
  return true
end

local function meant(job, filter, states, priorities)
  if states and not states[job.state] then
    return false
  end
  if priorities and not priorities[job.priority] then
    return false
  end
  if filter.error and job.class ~= filter.error then
    return false
  end
  if filter.scheduled ~= nil then
    local later = job.state == PENDING and job.run_at_ms > NOW
    if later ~= filter.scheduled then
      return false
    end
  end
  if filter.uri and not matches(job.uri, filter.uri) then
    return false
  end
  return not filter.body or matches(redis.call('HGET', KEY.body, job.id) or '', filter.body)
end

-- The next jobs that the filter means, at most `limit`, of the next `span` ids; and the id to go
-- on after, or false if none are left.
local function choose(filter, limit, span)
  local states, priorities = set_of(filter.states), set_of(filter.priorities)
  local ids = filter.ids
  if not ids then
    local only_dead = states and #filter.states == 1 and filter.states[1] == DEAD
    local source = only_dead and KEY.dead or KEY.all
    ids = redis.call('ZRANGEBYSCORE', source, '(' .. filter.after, filter.upto, 'LIMIT', 0, span)
  end
  local found = {}
  for _, job in ipairs(load(ids)) do
    if meant(job, filter, states, priorities) then
      found[#found + 1] = job
      if #found == limit and job.id ~= ids[#ids] then
        return found, job.id
      end
    end
  end
  if filter.ids or #ids < span then
    return found, false
  end
  return found, ids[#ids]
end
