import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Client, OncedError } from "onced";
import { directory, Server } from "./support.js";

const root = fileURLToPath(new URL("..", import.meta.url));

test("the example of the README runs", async (t) => {
  const server = await Server.start(t);
  const readme = readFileSync(join(root, "README.md"), "utf8");
  const [, example = ""] = /```ts\n(.*?)```/s.exec(readme) ?? [];
  assert.equal(example.trim().split("\n").length, 5);
  const program = example
    .replace("10.0.0.1:7411,10.0.0.2:7411", server.address)
    .replace('"onced"', JSON.stringify(join(root, "build/index.js")));
  const file = join(directory(t), "example.mjs");
  writeFileSync(file, `const charge = async (token) => "charged under " + typeof token;\n${program}process.exit();\n`);
  const said = execFileSync(process.execPath, [file], { encoding: "utf8" });
  assert.equal(said, "charged under bigint run here: true\n");
  const again = execFileSync(process.execPath, [file], { encoding: "utf8" });
  assert.equal(again, "charged under bigint run here: false\n");
});

test("the examples of the README compile", (t) => {
  const readme = readFileSync(join(root, "README.md"), "utf8");
  const examples = [...readme.matchAll(/```ts\n(.*?)```/gs)].map(([, example = ""]) => example);
  assert.equal(examples.length, 5);
  // In here the package is found by its own name.
  const dir = mkdtempSync(join(root, "build-test", "readme-"));
  t.after(() => rmSync(dir, { recursive: true }));
  const given = {
    client: 'import("onced").Client',
    app: 'import("fastify").FastifyInstance',
    error: "unknown",
    charge: "(token: bigint) => { id: string }",
  };
  const files = examples.map((example, index) => {
    const missing = Object.entries(given).filter(([name]) => !example.includes(`const ${name} =`));
    const declared = missing.map(([name, type]) => `declare const ${name}: ${type};\n`);
    if (!example.includes("import { Client }")) declared.push('import { Client } from "onced";\n');
    const file = join(dir, `${index}.ts`);
    writeFileSync(file, `${declared.join("")}${example}`);
    return file;
  });
  const config = { extends: "../../tsconfig.json", compilerOptions: { noEmit: true, noUnusedLocals: false }, files };
  writeFileSync(join(dir, "tsconfig.json"), JSON.stringify(config));
  const { stdout, status } = spawnSync("npx", ["tsc", "--project", dir], { cwd: root, encoding: "utf8" });
  assert.equal(status, 0, stdout);
});

test("CommonJS has the same classes", () => {
  const required = createRequire(import.meta.url)("onced") as typeof import("onced");
  assert.equal(required.Client, Client);
  assert.equal(required.OncedError, OncedError);
});

for (const [what, last] of Object.entries({ closed: "await client.close();", "not closed": "" })) {
  test(`a process that has ${what} its client ends by itself`, async (t) => {
    const server = await Server.start(t);
    const program = `
      import { Client } from ${JSON.stringify(join(root, "build/index.js"))};
      const client = new Client("${server.address}");
      await client.once("first").run(() => 1);
      // So many that they go into sessions.
      const run = (n, i) => client.once(n + "." + i).run(() => 1);
      for (let n = 0; n < 5; n += 1) await Promise.all(Array.from({ length: 100 }, (_, i) => run(n, i)));
      ${last}
    `;
    const child = spawn(process.execPath, ["--input-type=module", "--eval", program], { stdio: "pipe" });
    let said = "";
    for (const output of [child.stdout, child.stderr]) output.on("data", (text: Buffer) => (said += text.toString()));
    const began = performance.now();
    assert.deepEqual(await once(child, "exit"), [0, null]);
    assert.ok(performance.now() - began < 10_000);
    assert.equal(said, "");
  });
}

/** Packs what would be published, into `dir`. */
function packed(dir: string): { file: string; paths: string[] } {
  const args = ["pack", "--json", "--ignore-scripts", "--pack-destination", dir];
  const report = JSON.parse(execFileSync("npm", args, { cwd: root, encoding: "utf8" })) as unknown;
  // An array, or an object by package, as the version of npm has it.
  const [{ filename, files }] = (Array.isArray(report) ? report : Object.values(report as object)) as [
    { filename: string; files: { path: string }[] },
  ];
  return { file: join(dir, filename), paths: files.map(({ path }) => path) };
}

test("what is published is what is needed", (t) => {
  const { paths } = packed(directory(t));
  for (const path of [
    "build/index.js",
    "build/index.d.ts",
    "build/generated/onced/v1/record_pb.js",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
  ]) {
    assert.ok(paths.includes(path), path);
  }
  assert.deepEqual(
    paths.filter((path) => /^(src|test|build-test)\/|conformance/.test(path)),
    [],
  );
});

const USE = `
import { Client, codecs } from "onced";
import { idempotency as forExpress } from "onced/express";
import { idempotency as forFastify } from "onced/fastify";
import { IdempotencyService } from "onced/v1/idempotency_service";
const client: Client = new Client("127.0.0.1:1");
const kinds: string[] = [codecs.text.contentType, IdempotencyService.typeName, typeof forExpress(client), typeof forFastify(client)];
console.log(kinds.join());
void client.close();
`;

test("what is published is there for ES modules and for CommonJS, with its types", (t) => {
  const dir = mkdtempSync(join(root, "build-test", "packed-"));
  t.after(() => rmSync(dir, { recursive: true }));
  const home = join(dir, "node_modules", "onced");
  mkdirSync(home, { recursive: true });
  execFileSync("tar", ["-xzf", packed(dir).file, "-C", home, "--strip-components=1"]);
  // A package of its own: within this one the name is not looked up.
  writeFileSync(join(dir, "package.json"), JSON.stringify({ name: "user" }));
  const files = ["module.mts", "common.cts"].map((name) => join(dir, name));
  for (const file of files) writeFileSync(file, USE);
  const compilerOptions = { module: "node20", target: "es2022", types: ["node"], strict: true };
  writeFileSync(join(dir, "tsconfig.json"), JSON.stringify({ compilerOptions, files }));
  const { stdout, status } = spawnSync("npx", ["tsc", "--project", dir], { cwd: root, encoding: "utf8" });
  assert.equal(status, 0, stdout);
  for (const file of ["module.mjs", "common.cjs"]) {
    const said = execFileSync(process.execPath, [join(dir, file)], { encoding: "utf8" });
    assert.equal(said, "text/plain; charset=utf-8,onced.v1.IdempotencyService,function,function\n", file);
  }
});

test("the agent answers, runs and ends with its input", async (t) => {
  const server = await Server.start(t);
  const agent = spawn(process.execPath, [join(root, "build/conformance/agent.js")], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  t.after(() => agent.kill());
  const lines = createInterface({ input: agent.stdout })[Symbol.asyncIterator]();
  const tell = (command: object) => agent.stdin.write(`${JSON.stringify(command)}\n`);
  const told = async () => JSON.parse((await lines.next()).value as string) as Record<string, unknown>;
  tell({ id: 1, do: "connect", client: "c", servers: server.address });
  assert.deepEqual(await told(), { id: 1, ok: {} });
  tell({ id: 2, do: "run", run: "r", client: "c", key: "k" });
  assert.deepEqual(await told(), { id: 2, ok: {} });
  const { event, run, attempt, protected: safe } = await told();
  assert.deepEqual([event, run, attempt, safe], ["started", "r", "1", true]);
  tell({ id: 3, do: "finish", run: "r", value: { n: 1 } });
  assert.deepEqual(await told(), { id: 3, ok: {} });
  const ended = await told();
  assert.deepEqual([ended["event"], ended["result"], ended["value"]], ["ended", "done", { n: 1 }]);
  tell({ id: 4, do: "fingerprint", kind: "json", text: "NaN" });
  const { error } = (await told()) as { error: { kind: string } };
  assert.equal(error.kind, "unfit");
  agent.stdin.end();
  assert.deepEqual(await once(agent, "exit"), [0, null]);
});
