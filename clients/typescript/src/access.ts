/** How servers are spoken to by TLS, who asks, and what to do where one or the other is refused. */

import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import * as tls from "node:tls";
import { type ChannelCredentials, credentials } from "@grpc/grpc-js";

import type { Clock, Moment } from "./clock.js";
import { InvalidError, messageOf } from "./errors.js";

/** How old a token that was read from a file may be when it is sent, in milliseconds. */
const TOKEN_AGE = 5_000;

/** What a client shows of itself, and whom it trusts. Files are PEM. */
export interface Access {
  /** The CA that signed the servers' certificates; those that the system trusts without one. Read once. */
  caFile?: string | undefined;
  /** A certificate to show, together with `keyFile`. Read once. */
  certFile?: string | undefined;
  /** The key of `certFile`. */
  keyFile?: string | undefined;
  /** A token that says who calls. */
  token?: string | undefined;
  /** A file that holds the token. It is read again when it is 5 s old, or was refused. */
  tokenFile?: string | undefined;
  /** Sends the token also where it goes over a network without TLS, for all to read. Default: no. */
  allowTokenInPlaintext?: boolean | undefined;
}

/** What to connect by TLS with. */
export function tlsCredentials(access: Access): ChannelCredentials {
  const { caFile, certFile, keyFile } = access;
  if ((certFile === undefined) !== (keyFile === undefined)) {
    throw new InvalidError("certFile and keyFile go together: one was given without the other");
  }
  const ca = caFile === undefined ? systemRoots() : readPem(caFile, "CERTIFICATE", "no certificate");
  const cert = certFile === undefined ? null : readPem(certFile, "CERTIFICATE", "no certificate");
  const key = keyFile === undefined ? null : readPem(keyFile, "PRIVATE KEY", "no private key");
  try {
    return credentials.createSsl(ca, key, cert);
  } catch (error) {
    throw new InvalidError(`the files for TLS cannot be used: ${messageOf(error)}`, { cause: error });
  }
}

/** The token to send with each call. */
export class Bearer {
  readonly #file: string | undefined;
  readonly #clock: Clock;
  #header: string;
  #read: Moment;

  constructor(access: Access, clock: Clock) {
    if (access.token !== undefined && access.tokenFile !== undefined) {
      throw new InvalidError("token and tokenFile were both given: which one is it?");
    }
    this.#file = access.tokenFile;
    this.#clock = clock;
    this.#read = clock.now();
    this.#header = this.#file === undefined ? header(access.token ?? "", "the token") : readToken(this.#file);
  }

  /** What to send. The file is small and local: reading it holds nobody up. */
  header(): string {
    if (this.#clock.since(this.#read) >= TOKEN_AGE) this.#again();
    return this.#header;
  }

  /** After `sent` was refused: whether there is another token to try. */
  renewed(sent: string): boolean {
    this.#again();
    return this.#header !== sent;
  }

  #again(): void {
    if (this.#file === undefined) return;
    this.#read = this.#clock.now();
    try {
      this.#header = readToken(this.#file);
    } catch {
      // Half a file, or none for a moment: the token stays as it was, and a server says if it is no good.
    }
  }
}

/** Whether a host is this machine, where nobody listens in between. */
export function isLoopback(host: string): boolean {
  const address = host.replace(/^\[(.*)\]$/, "$1");
  if (isIP(address) === 4) return address.startsWith("127.");
  return address === "localhost" || (isIP(address) === 6 && /^(0*:)+0*1$/.test(address));
}

/** What a failed connection says, and what to do about it, where no later attempt would fare better. */
const ADVICE: readonly { says: RegExp; tls?: boolean; advice: string }[] = [
  {
    says: /unable to (verify the first|get (local )?issuer) certificate|self[- ]signed certificate|certificate signature failure/,
    advice: "its certificate is signed by nobody who is trusted here: name its CA with caFile",
  },
  {
    says: /does not match certificate's altnames/,
    advice: "its certificate is for other names: call it by one of them",
  },
  {
    says: /certificate has expired|certificate is not yet valid/,
    advice: "renew the server's certificate, or set the clock of this machine right",
  },
  {
    says: /alert certificate required|certificate_required|SSL alert number 116/i,
    advice: "it wants to see a certificate: name one with certFile and keyFile",
  },
  {
    says: /alert (unknown ca|decrypt error|bad certificate|certificate unknown|unsupported certificate)|SSL alert number (42|43|46|48|51)\b/i,
    advice: "it does not take the certificate of this client: is that signed by the server's tls.client_ca?",
  },
  { says: /alert certificate expired|SSL alert number 45\b/i, advice: "the certificate of this client has expired" },
  {
    says: /wrong version number|packet length too long/i,
    tls: true,
    advice: "it does not speak TLS there: write http:// in place of https://, or name the port that does",
  },
  {
    // 13 is HTTP_1_1_REQUIRED: so onced says that it speaks TLS. Others answer what is no HTTP/2 at all.
    says: /RST_STREAM with code 13\b|Last error: (Protocol|Frame size) error/i,
    tls: false,
    advice:
      "it does not speak HTTP/2 without TLS there: write https:// in front of its address, or name the port of onced",
  },
];

/** What to do about a connection that failed with this text, if somebody has set it up so. */
export function adviceFor(text: string, overTls: boolean): string | undefined {
  return ADVICE.find(({ says, tls }) => (tls === undefined || tls === overTls) && says.test(text))?.advice;
}

/** Whether a connection that failed with this text has no address to go to. */
export function isUnknownHost(text: string): boolean {
  return /^(Name resolution failed|Failed to parse DNS address)|\bENOTFOUND\b/.test(text);
}

function readToken(file: string): string {
  return header(read(file).toString("utf8").trim(), file);
}

function header(token: string, what: string): string {
  if (token === "") throw new InvalidError(`${what} is empty, and is to be a token`);
  if (!/^[\x21-\x7e]+$/.test(token)) {
    throw new InvalidError(`${what} is to be a token: printable text on one line, without spaces`);
  }
  return `Bearer ${token}`;
}

function readPem(file: string, label: string, without: string): Buffer {
  const pem = read(file);
  if (!pem.includes(`${label}-----`)) throw new InvalidError(`${file} holds ${without} in PEM`);
  return pem;
}

function read(file: string): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    throw new InvalidError(`cannot read ${file}: ${messageOf(error)}`, { cause: error });
  }
}

/** Where systems keep what they trust, for versions of Node that cannot ask them. */
const SYSTEM_ROOTS = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/ssl/cert.pem",
];

/** The certificates of the CAs that the system trusts; Node's own list, as null, where they cannot be found. */
function systemRoots(): Buffer | null {
  const { getCACertificates } = tls as { getCACertificates?: (type: "system") => string[] };
  const known = getCACertificates?.("system") ?? [];
  if (known.length > 0) return Buffer.from(known.join("\n"));
  for (const file of [process.env["SSL_CERT_FILE"], ...SYSTEM_ROOTS]) {
    try {
      if (file) return readFileSync(file);
    } catch {
      // Not on this system.
    }
  }
  return null;
}
