import { defineConfig } from "tsdown";

export default defineConfig({
  entry: ["src/index.ts", "src/z1.ts", "src/react.ts"],
  platform: "neutral",
  dts: true,
  deps: { onlyBundle: ["fflate"] },
  target: "es2022",
  outExtensions: () => ({ js: ".js", dts: ".d.ts" }),
});
