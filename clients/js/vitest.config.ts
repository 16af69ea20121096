import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.{ts,tsx}"],
    // Node 20 has a WebSocket only with this; later ones have it anyway.
    execArgv: ["--experimental-websocket"],
    // Most of their time they wait for servers.
    maxWorkers: 4,
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
});
