-- with: jobs choosing
-- How many jobs a filter means, by a field. Arguments: filter, span, and one of state, priority
-- and class. Replies with names and numbers by turns, and the id to go on after, or false.

local filter, span, field = unpack(ARGS)
local found, after = choose(filter, span, span)
local counts, names = {}, {}
for _, job in ipairs(found) do
  local name = job[field] or 'none'
  if not counts[name] then
    names[#names + 1] = name
  end
  counts[name] = (counts[name] or 0) + 1
end
local flat = {}
for _, name in ipairs(names) do
  flat[#flat + 1], flat[#flat + 2] = name, counts[name]
end
return reply({ flat, after })
