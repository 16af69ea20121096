// Refused handshakes, against real servers.

import { describe, expect, test } from "vitest";
import { follow, live, nats, open, rig, skipped, sockets, withRig } from "./follow.js";
import { until } from "./rig.js";

withRig();

describe.skipIf(skipped).each(sockets)("a refusal, with %s", (_, WebSocket) => {
  test.each(["false", "true"])(
    "for too many connections is waited out, as a close code: %s",
    async (closes) => {
      const server = await rig.server(nats, { WS_MAX_CONNECTIONS: "1", WS_CLOSE_REFUSED: closes });
      const { feed: first } = await follow(server.url, { WebSocket });
      const feed = open(server.url, { WebSocket, retryMinMs: 10, retryMaxMs: 50 });
      await until("refused", () => feed.state.name === "offline");
      expect(feed.state.cause).toMatch(/^Server at capacity/);
      const waitMs = (feed.state.retryAt as number) - Date.now();
      expect(waitMs).toBeGreaterThan(500);
      first.close();
      await live(feed);
      await server.kill();
    },
  );
});
