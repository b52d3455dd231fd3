// node name_levels.mjs PATH [...]
//
// The level that the Hub takes each path to be of, from its name, as JSON: null where it sees none.
import { parseGGUFQuantLabel } from "@huggingface/gguf";

const labels = process.argv.slice(2).map((path) => [path, parseGGUFQuantLabel(path) ?? null]);
process.stdout.write(`${JSON.stringify(Object.fromEntries(labels))}\n`);
