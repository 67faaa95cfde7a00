// What the JavaScript scripts here share: where to go, what the stand-in counts, and how to complain.
//
// ADIT_URL leads to the stand-in through Adit, ADIT_DIRECT leads straight to it, ADIT_KEY is the key that Adit wants,
// if it wants one, and ADIT_TEST_NODE_PATH is the node_modules folder that has the packages.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { join } from 'node:path'

export const through = process.env.ADIT_URL.replace(/\/$/, '')
export const direct = process.env.ADIT_DIRECT
export const key = process.env.ADIT_KEY
const SOON = 5000

// A client that hangs is a failure to see.
setTimeout(() => {
  console.error('not done within 120 s')
  process.exit(1)
}, 120_000).unref()

// Imports look beside this file only, and the packages are elsewhere.
export const packageOf = createRequire(join(process.env.ADIT_TEST_NODE_PATH, 'x.js'))

// What the stand-in answers, asked directly.
export async function get(path) {
  const answer = await fetch(direct + path)
  return answer.json()
}

const { models } = await get('/api/tags')
export const model = models[0].name

export async function parts(stream) {
  const all = []
  for await (const part of await stream) {
    all.push(part)
  }
  return all
}

// Fails unless `act` leaves one more cancelled generation behind; gives it the counters from before.
export async function cancels(what, act) {
  const before = await get('/test/counters')
  await act(before)
  const gone = before.cancelled + 1
  const over = (now) => now.cancelled >= gone && now.running === before.running
  const after = await waitFor(what, over)
  same(what, [after.started, after.cancelled], [before.started + 1, gone])
}

export async function waitFor(what, holds) {
  const end = Date.now() + SOON
  for (;;) {
    const now = await get('/test/counters')
    if (holds(now)) {
      return now
    }
    if (Date.now() > end) {
      throw new Error(`${what}: not within ${SOON} ms; the stand-in counts ${JSON.stringify(now)}`)
    }
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

export function same(what, got, want) {
  assert.deepEqual(got, want, `${what}: differs\n   got ${JSON.stringify(got)}\n  want ${JSON.stringify(want)}`)
  console.log(`ok  ${what}`)
}
