-- with: jobs attempts controls answering leasing
-- Finish what was leased earlier and lease the next: `finish`, `lease` and `exchange`.
-- Arguments: a seed for the ids of events; answers, each a token and verdicts; what is wanted, or
-- false: worker, limit, ms, token, and whether elsewhere the worker holds a lease, or a suspect.
-- Replies with what `answer` returns for each, and what `lease` returns.

local seed, answers, want = unpack(ARGS)
local queue = read_queue()
if not queue then
  -- It was dropped, or never made: no token of it holds anything.
  queue = {}
  want = false
end
local finished = {}
for index, one in ipairs(answers) do
  finished[index] = answer(queue, one[1], one[2], seed)
end
return reply({ finished, want and lease(queue, want, seed) })
