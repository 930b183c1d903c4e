// The extension under test: LITEMESH_EXTENSION, else the debug build.
import { fileURLToPath } from "node:url";

const NAMES = { darwin: "liblitemesh.dylib", win32: "litemesh.dll" };
const NAME = NAMES[process.platform] ?? "liblitemesh.so";

export const EXTENSION =
  process.env.LITEMESH_EXTENSION ?? fileURLToPath(new URL(`../../../target/debug/${NAME}`, import.meta.url));
