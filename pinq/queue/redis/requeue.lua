-- with: jobs choosing
-- Make dead jobs pending again, with all their attempts. Arguments: filter, limit, span, and by id
-- how much later than now each falls due, in ms; or false.
-- Replies with how many, and the id to go on after or false.

local filter, limit, span, delays = unpack(ARGS)
local found, after = choose(filter, limit, span)
for _, job in ipairs(found) do
  leave(job)
  await(job, NOW + (delays and delays[job.id] or 0), 0)
  ring()
end
return reply({ #found, after })
