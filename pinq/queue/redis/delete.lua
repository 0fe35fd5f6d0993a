-- with: jobs choosing
-- Delete jobs. Arguments: filter, limit, span. Replies with how many, and the id to go on after or
-- false.

local filter, limit, span = unpack(ARGS)
local found, after = choose(filter, limit, span)
for _, job in ipairs(found) do
  forget(job)
  ring()
end
return reply({ #found, after })
