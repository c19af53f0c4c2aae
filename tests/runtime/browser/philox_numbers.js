// node philox_numbers.js MODULES: reads [{seed, slot, step, sample, count}, …], writes the numbers
// of each.

import { readFileSync } from "node:fs";

const { normal, slotKey, uniform } = await import(`${process.argv[2]}/philox.js`);
const draws = JSON.parse(readFileSync(0, "utf-8"));
const made = [];
for (const { seed, slot, step, sample, count } of draws) {
  const key = await slotKey(slot);
  const place = [BigInt(seed), key, step, sample, count];
  made.push({ uniform: Array.from(uniform(...place)), normal: Array.from(normal(...place)) });
}
process.stdout.write(JSON.stringify(made));
