/** Where a process dies or is paused, for the story. Leave it out of what you copy. */

let fault = process.env["FAULT"];

/** Marks a point of the code. With FAULT=POINT:SIGNAL the process sends itself that signal the first time it gets there. */
export function reach(point: string): void {
  const [where, signal] = fault?.split(":") ?? [];
  if (where !== point || signal === undefined) return;
  fault = undefined;
  console.log(`${signal} ${point}`);
  process.kill(process.pid, signal);
}
