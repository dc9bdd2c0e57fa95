-- Posts one body over and over; prints what came of it as one line of JSON, latencies in microseconds.
wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY")
for name, value in os.getenv("BENCH_HEADERS"):gmatch("([^\n:]+): ([^\n]*)") do
  wrk.headers[name] = value
end

local keys = {}
for key in os.getenv("BENCH_KEYS"):gmatch("[^\n]+") do
  keys[#keys + 1] = key
end
if #keys > 0 then
  local requests, turn = {}, 0
  function init()
    for number, key in ipairs(keys) do
      wrk.headers["authorization"] = "Bearer " .. key
      requests[number] = wrk.format()
    end
  end
  function request()
    turn = turn % #requests + 1
    return requests[turn]
  end
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
