// What somebody types, as names to subscribe to.

const PART = "[A-Za-z0-9_-]+";
const NAME = new RegExp(`^(?:>|(?:\\*|${PART})\\.(?:\\*|>|${PART}))$`);
const SYMBOL = new RegExp(`^(?:\\*|${PART})$`);
const MAX_CHARS = 64;

export const EVERY_TRADE = "*.trade";

export interface Names {
  readonly names: string[];
  /** What is no name. */
  readonly wrong: string[];
}

/** `BTC` alone is everything of it. Spaces and commas separate. */
export function readNames(text: string): Names {
  const names = new Set<string>();
  const wrong: string[] = [];
  for (const word of text.split(/[\s,]+/)) {
    if (!word) continue;
    const name = SYMBOL.test(word) ? `${word}.*` : word;
    if (NAME.test(name) && name.length <= MAX_CHARS) names.add(name);
    else wrong.push(word);
  }
  if (!names.size && !wrong.length) names.add(EVERY_TRADE);
  return { names: [...names], wrong };
}
