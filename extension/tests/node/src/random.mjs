// A seeded generator: the same seed, the same history. LITEMESH_SEED replays one.

export function seed() {
  return process.env.LITEMESH_SEED ? Number(process.env.LITEMESH_SEED) : Math.floor(Math.random() * 2 ** 32);
}

export class Random {
  #state;

  constructor(start) {
    this.#state = start >>> 0;
  }

  /** An integer from 0 to below `bound` (Marsaglia's xorshift over a counter). */
  below(bound) {
    let x = (this.#state = (this.#state + 0x9e3779b9) >>> 0);
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return ((x ^ (x >>> 16)) >>> 0) % bound;
  }

  pick(list) {
    return list[this.below(list.length)];
  }
}
