// A real OpenID Provider (the npm package `oidc-provider`) whose people a test makes and changes.
// Prints its port. Below /test/ the test tells it what to do; everything else is the provider's own.
import { createRequire } from 'node:module';
import http from 'node:http';
import crypto from 'node:crypto';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const modules = process.env.ADIT_TEST_OIDC_PATH;
const require = createRequire(path.join(modules, 'any.js'));
const { Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

// People by their name: { email, groups, disabled, ttl }.
const people = {};
let isDown = false;
// What a test changes: whether there is a device grant, how long its codes and refresh tokens are
// valid, and whether claims are only at the userinfo endpoint.
let settings = { deviceFlow: true, deviceTtl: 600, conform: false, refreshTtl: 86400 };
let keyNumber = 0;
let keys = [newKey()];
let provider;
let callback;
let issuer;

function newKey() {
  const { privateKey } = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });
  keyNumber += 1;
  return { ...privateKey.export({ format: 'jwk' }), kid: `key-${keyNumber}`, alg: 'ES256', use: 'sig' };
}

const claimsOf = (name) => ({ email: people[name]?.email, groups: people[name]?.groups ?? [] });

function start() {
  provider = new Provider(issuer, {
    adapter: Memory,
    jwks: { keys },
    clients: [
      {
        client_id: 'adit', client_secret: 'a-secret-of-the-box', application_type: 'native',
        redirect_uris: ['http://127.0.0.1/'], response_types: ['code'],
        grant_types: [
          ...(settings.deviceFlow ? ['urn:ietf:params:oauth:grant-type:device_code'] : []),
          'authorization_code', 'refresh_token',
        ],
        id_token_signed_response_alg: 'ES256',
      },
      // An application that gets a token for each person by itself.
      ...Object.keys(people).map((name) => ({
        client_id: name, client_secret: `${name}-secret`, redirect_uris: [], response_types: [],
        grant_types: ['client_credentials'], id_token_signed_response_alg: 'ES256',
      })),
    ],
    cookies: { keys: ['a key of cookies'] },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
    conformIdTokenClaims: settings.conform,
    scopes: ['openid', 'offline_access', 'email', 'groups'],
    findAccount: (_ctx, name) => (people[name] && !people[name].disabled ? {
      accountId: name,
      claims: async () => ({ sub: name, email_verified: true, ...claimsOf(name) }),
    } : undefined),
    extraTokenClaims: (_ctx, token) => claimsOf(token.clientId),
    ttl: { ClientCredentials: (_ctx, token) => people[token.clientId]?.ttl ?? 600, RefreshToken: settings.refreshTtl, Grant: 86400, Session: 86400, Interaction: 600, AccessToken: 600, IdToken: 600, DeviceCode: settings.deviceTtl },
    features: {
      devInteractions: { enabled: true },
      deviceFlow: { enabled: settings.deviceFlow },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_ctx, resource) => ({
          scope: '', audience: resource.replace('urn:', ''), accessTokenFormat: 'jwt',
          jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
  });
  callback = provider.callback();
}

// What the provider remembers outlives a change of its keys.
const stored = new Map();
class Memory {
  constructor(model) { this.model = model; }
  key(id) { return `${this.model}:${id}`; }
  async upsert(id, payload) { stored.set(this.key(id), payload); }
  async find(id) { return stored.get(this.key(id)); }
  async findBy(field, value) {
    for (const [key, payload] of stored) {
      if (key.startsWith(`${this.model}:`) && payload[field] === value) return payload;
    }
    return undefined;
  }
  findByUid(uid) { return this.findBy('uid', uid); }
  findByUserCode(code) { return this.findBy('userCode', code); }
  async destroy(id) { stored.delete(this.key(id)); }
  async consume(id) { stored.get(this.key(id)).consumed = Math.floor(Date.now() / 1000); }
  async revokeByGrantId(grant) {
    for (const [key, payload] of stored) if (payload.grantId === grant) stored.delete(key);
  }
}

// A person's browser.
function browser() {
  const jar = new Map();
  let url = new URL(`${issuer}/device`);
  const visit = async (to, form) => {
    let [method, body] = form ? ['POST', new URLSearchParams(form)] : ['GET', undefined];
    for (let hops = 0; hops < 20; hops += 1) {
      url = new URL(to, url);
      const cookie = [...jar].map(([key, value]) => `${key}=${value}`).join('; ');
      const response = await fetch(url, { method, body, redirect: 'manual', headers: { cookie } });
      for (const line of response.headers.getSetCookie()) {
        const [pair] = line.split(';');
        const at = pair.indexOf('=');
        const value = pair.slice(at + 1);
        if (value) jar.set(pair.slice(0, at), value); else jar.delete(pair.slice(0, at));
      }
      if (response.status < 300 || response.status >= 400) return response.text();
      [to, method, body] = [response.headers.get('location'), 'GET', undefined];
    }
    throw new Error('too many redirects');
  };
  return visit;
}

// A person who signs in and consents, or does not.
async function consent(visit, page, { name, deny }) {
  const action = (text) => text.match(/action="([^"]*)"/)?.[1];
  if (deny) return visit(page.match(/href="([^"]*\/abort)"/)[1]);
  const asked = await visit(action(page), { prompt: 'login', login: name, password: 'any' });
  return visit(action(asked), { prompt: 'consent' });
}

// A person who opens the page of a browser's sign-in.
async function browse({ url, ...person }) {
  const visit = browser();
  return consent(visit, await visit(url), person);
}

// A person who enters the code of a device.
async function approve({ code, ...person }) {
  const visit = browser();
  const hidden = (page, field) => page.match(new RegExp(`name="${field}" value="([^"]*)"`))?.[1];
  let page = await visit('/device');
  page = await visit('/device', { xsrf: hidden(page, 'xsrf'), user_code: code });
  page = await visit('/device', { xsrf: hidden(page, 'xsrf'), user_code: code, confirm: 'yes' });
  return consent(visit, page, person);
}

async function told(command, body) {
  switch (command) {
    // Makes a person, or changes what is known of one.
    case 'person': people[body.name] = { ...people[body.name], ...body }; start(); return {};
    case 'down': isDown = body.is; return {};
    // New tokens are signed with another key; the old ones are withdrawn.
    case 'rotate': keys = [newKey()]; start(); return {};
    case 'settings': settings = { ...settings, ...body }; start(); return {};
    case 'browse': return { page: await browse(body) };
    case 'approve': return { page: await approve(body) };
    default: throw new Error(`no such command: ${command}`);
  }
}

const server = http.createServer(async (request, response) => {
  if (!request.url.startsWith('/test/')) {
    if (isDown) request.socket.destroy(); else callback(request, response);
    return;
  }
  let text = '';
  for await (const piece of request) text += piece;
  try {
    const answer = await told(request.url.slice('/test/'.length), JSON.parse(text));
    response.end(JSON.stringify(answer));
  } catch (e) {
    response.statusCode = 500;
    response.end(String(e.stack));
  }
});
server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  start();
  console.log(server.address().port);
});
// The package prints notices, which nobody reads after the port.
process.stdout.on('error', () => {});
// The test has ended.
process.stdin.on('end', () => process.exit(0)).resume();
