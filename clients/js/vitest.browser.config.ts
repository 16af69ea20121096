import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["browser/**/*.test.ts"],
    testTimeout: 180_000,
    hookTimeout: 60_000,
    // They wait most of the time.
    maxConcurrency: 4,
  },
});
