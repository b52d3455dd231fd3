// node read_gguf.mjs URL [...]
//
// What the Hub's own reader, @huggingface/gguf, finds in the headers of GGUF files that a server on
// loopback has: a JSON list with one item a URL. A URL of a first shard stands for all its shards.
//
// JSON has one kind of number and no bit patterns, so integers of 64 bits are decimal strings,
// floats the 16 hex digits of their binary64, and everything else is itself.
import {
  GGMLQuantizationType,
  GGUFValueType,
  gguf,
  ggufAllShards,
  parseGgufShardFilename,
} from "@huggingface/gguf";

const HEADER = ["version", "tensor_count", "kv_count"]; // the package puts them among the keys

function inJson(value, type) {
  if (type === GGUFValueType.FLOAT32 || type === GGUFValueType.FLOAT64) {
    const bits = Buffer.alloc(8);
    bits.writeDoubleBE(value);
    return bits.toString("hex");
  }
  return typeof value === "bigint" ? value.toString() : value;
}

function entry({ type, subType, value }) {
  if (type !== GGUFValueType.ARRAY) {
    return { type: GGUFValueType[type], value: inJson(value, type) };
  }
  return {
    type: `ARRAY of ${GGUFValueType[subType]}`,
    value: value.map((item) => inJson(item, subType)),
  };
}

function file(url, { typedMetadata, tensorInfos, tensorDataOffset, littleEndian }) {
  const keys = Object.keys(typedMetadata).filter((key) => !HEADER.includes(key));
  return {
    url,
    littleEndian,
    header: Object.fromEntries(HEADER.map((key) => [key, entry(typedMetadata[key])])),
    metadata: keys.map((key) => ({ key, ...entry(typedMetadata[key]) })),
    tensors: tensorInfos.map(({ name, shape, dtype, offset }) => ({
      name,
      shape: shape.map(String),
      typeId: dtype,
      type: GGMLQuantizationType[dtype] ?? null, // null: a type that the package does not know
      offset: offset.toString(),
    })),
    tensorDataOffset: tensorDataOffset.toString(),
  };
}

async function read(url) {
  if (new URL(url).hostname !== "127.0.0.1") {
    throw new Error(`${url} is not on 127.0.0.1: the tests' files are`);
  }
  if (parseGgufShardFilename(url)) {
    const { shards, urls, parameterCount } = await ggufAllShards(url, { typedMetadata: true });
    return { parameterCount, files: shards.map((shard, index) => file(urls[index], shard)) };
  }
  // ggufAllShards would read one file too, but leaves its types out
  const parsed = await gguf(url, { typedMetadata: true, computeParametersCount: true });
  return { parameterCount: parsed.parameterCount, files: [file(url, parsed)] };
}

const found = [];
for (const url of process.argv.slice(2)) {
  found.push(await read(url));
}
process.stdout.write(`${JSON.stringify(found)}\n`);
