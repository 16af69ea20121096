-- The labels that depend on a line: its service and its level. Both have few values.

-- The services; compose adds them through the log option `labels: com.docker.compose.service`.
local SERVICES = {
  ws = true, ["ws-2"] = true, nats = true, ["nats-1"] = true, ["nats-2"] = true, ["nats-3"] = true,
  publisher = true, haproxy = true,
}

-- Levels of our JSON lines, and those that nats-server writes.
local LEVELS = { debug = "debug", info = "info", warning = "warning", error = "error", critical = "error" }
local LEVELS_OF_NATS = {
  TRC = "debug", DBG = "debug", INF = "info", WRN = "warning", ERR = "error", FTL = "error",
}

-- Syslog's severities, which HAProxy writes together with a facility, and its words at the start.
local SEVERITIES = { [0] = "error", "error", "error", "error", "warning", "info", "info", "debug" }
local LEVELS_OF_HAPROXY = { ALERT = "error", WARNING = "warning", NOTICE = "info", DEBUG = "debug" }

local function level_of(line, severity)
  -- Within a JSON string the quotes would have a backslash before them.
  local level = LEVELS[line:match('"level": ?"(%a+)"')]
  -- [1] 2026/11/24 02:45:10.123456 [INF] Server is ready
  return level or LEVELS_OF_NATS[line:match("^%[%d+%] %S+ %S+ %[(%u+)%]")]
    -- [NOTICE]   (1) : New worker (8) forked
    or LEVELS_OF_HAPROXY[line:match("^%[(%u+)%] +%(%d+%)")] or severity or "unknown"
end

function label(_, timestamp, record)
  local attributes = record["attrs"]
  local service = attributes and attributes["com.docker.compose.service"]
  if not SERVICES[service] then
    return -1, timestamp, record -- from another container: not shipped
  end
  local line = record["log"]:gsub("%s+$", "")
  local severity
  if service == "haproxy" then
    -- <134>{"event": …}. The number would keep Loki from reading the JSON behind it.
    local priority, rest = line:match("^<(%d+)>(.*)$")
    if priority then
      line, severity = rest, SEVERITIES[tonumber(priority) % 8]
    end
  end
  return 2, timestamp, { log = line, service = service, level = level_of(line, severity) }
end
