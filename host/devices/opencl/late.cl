// Late operand bits and stuck bits (docs/architecture.md, "Overclocking"): behind redline.cl in builds with `overclock`.
//
// A step sees late bits of the step before, so the outputs of a row come one after the other, step by step; a row begins
// with a history of zeros, so rows are what work-items share. A work-item takes ROWS of them together.
//
// What comes before, beside redline.cl's: LATE_GROUPS and BANKS, ACCUMULATOR (the last bank's number), the masks' record, and
// the numbers of a bank's words (hw.masks).

#define BANK_WORDS (LATE_GROUPS * OPERANDS * LANES)
// Of a group of a bank: all lanes' words of one operand.
#define WORDS(masks, number, q) LANES_AT((number) * VECTORS + (q), masks)
// Bits of `b` where `chosen` has ones, else those of `a`.
#define SELECT(a, b, chosen) ((a) ^ (((a) ^ (b)) & (chosen)))
// What a register takes, stuck bits included.
#define HELD(masks, q, value) (((value) & WORDS(masks, OPERAND_KEEP, q)) | WORDS(masks, OPERAND_SET, q))
#define ALL(bit) ((sums_t)((bit) ? ~0u : 0u))

typedef __global const uint *masks_t;

// What ROWS rows' trees saw in the step before.
typedef struct {
    sums_t a[ROWS][VEC - 1][VECTORS];
    sums_t s[ROWS][VEC - 1][VECTORS];
} trees_t;

// ROWS rows' accumulators, and what these saw in the step before.
typedef struct {
    sums_t running[ROWS][VECTORS];
    sums_t a[ROWS][VECTORS];
    sums_t s[ROWS][VECTORS];
    bool begins;
    bool loaded;
} rows_t;

// Before a list is taken: no bank is in use.
static void forget_masks(__global uint *banks) {
    for EACH (bank, BANKS)
        banks[bank * BANK_WORDS + OPERAND_USED * LANES] = 0;
}

// A launch's list of masks, to their banks.
static void take_masks(records_t list, uint count, __global uint *banks) {
    for EACH (at, count) {
        records_t mask = list + (ulong)at * MASK_BYTES;
        const uint bank = mask[MASK_BANK], group = mask[MASK_GROUP], number = mask[MASK_OPERAND];
        const uint lane = mask[MASK_LANE];
        if (bank < BANKS && group < LATE_GROUPS && number < OPERANDS && lane < LANES)
            banks[bank * BANK_WORDS + (group * OPERANDS + number) * LANES + lane] =
                as_uint(vload4(0, mask + MASK_WORD));
    }
}

static uint groups_in_use(masks_t banks, uint bank) {
    return min(banks[bank * BANK_WORDS + OPERAND_USED * LANES], (uint)LATE_GROUPS);
}

// Vector `q` of the sum of one row's products where bits of the tree are late or stuck.
static void tree_sum(masks_t banks, const uint *used, uint q, reads_t word, reads_t weights,
                     sums_t a[VEC - 1][VECTORS], sums_t s[VEC - 1][VECTORS], sums_t sum[VECTORS]) {
    sums_t level[VEC];
#pragma unroll
    for (uint v = 0; v < VEC; v++)
        level[v] = AS_UINTS(WEIGHTS_AT(v * VECTORS + q, weights) * (int)word[v]);
    uint bank = 0;
#pragma unroll
    for (uint width = VEC / 2; width > 0; width /= 2)
#pragma unroll
        for (uint i = 0; i < width; i++, bank++) {
            const sums_t left = level[2 * i], right = level[2 * i + 1];
            level[i] = left + right;
            if (used[bank] == 0)
                continue;
            masks_t masks = banks + bank * BANK_WORDS;
            sums_t total = (sums_t)(0);
            for (uint group = 0; group < used[bank]; group++) {
                masks_t own = masks + group * OPERANDS * LANES;
                total |= (SELECT(a[bank][q], left, WORDS(own, OPERAND_A, q)) +
                          SELECT(s[bank][q], right, WORDS(own, OPERAND_S, q))) &
                         WORDS(own, OPERAND_OUTPUTS, q);
            }
            a[bank][q] = left;
            s[bank][q] = right;
            // The bits above the register's own are copies of its highest.
            const sums_t sign = WORDS(masks, OPERAND_SIGN, q);
            level[i] = (HELD(masks, q, total) ^ sign) - sign;
        }
    sum[q] = level[0];
}

// What a step adds to the accumulators of each row.
static void step_sums(masks_t banks, const uint *used, bool late_trees, reads_t word[ROWS], reads_t weights,
                      trees_t *trees, sums_t sum[ROWS][VECTORS]) {
    if (late_trees) {
        for (uint q = 0; q < VECTORS; q++)
            for (uint r = 0; r < ROWS; r++)
                tree_sum(banks, used, q, word[r], weights, trees->a[r], trees->s[r], sum[r]);
        return;
    }
#pragma unroll
    for (uint q = 0; q < VECTORS; q++)
#pragma unroll
        for (uint r = 0; r < ROWS; r++)
            sum[r][q] = (sums_t)(0);
    ADD_PRODUCTS(ROWS, sum, word, weights)
}

// A step of the accumulators; `first`: it loads the bias. Each row's sum becomes what is captured, late bits included.
static void capture(masks_t masks, uint used, const group_t *shared, bool first, sums_t sum[ROWS][VECTORS],
                    rows_t *rows) {
#pragma unroll
    for (uint q = 0; q < VECTORS; q++) {
        const sums_t bias = shared->start[q];
        if (used == 0) {
#pragma unroll
            for (uint r = 0; r < ROWS; r++)
                sum[r][q] += first ? bias : rows->running[r][q];
            continue;
        }
        sums_t total[ROWS];
#pragma unroll
        for (uint r = 0; r < ROWS; r++)
            total[r] = (sums_t)(0);
        if (first || rows->loaded) {
            const sums_t old_bias = rows->begins ? (sums_t)(0) : bias;
            for (uint group = 0; group < used; group++) {
                masks_t own = masks + group * OPERANDS * LANES;
                const sums_t loaded = SELECT(old_bias, bias, WORDS(own, OPERAND_BIAS, q));
                const sums_t selected = SELECT(ALL(rows->loaded), ALL(first), WORDS(own, OPERAND_SELECT, q));
#pragma unroll
                for (uint r = 0; r < ROWS; r++) {
                    const sums_t kept = SELECT(rows->a[r][q], rows->running[r][q], WORDS(own, OPERAND_A, q));
                    const sums_t added = SELECT(rows->s[r][q], sum[r][q], WORDS(own, OPERAND_S, q));
                    total[r] |= (SELECT(kept, loaded, selected) + added) & WORDS(own, OPERAND_OUTPUTS, q);
                }
            }
        } else {
            // Neither this step nor the one before selects the bias.
            for (uint group = 0; group < used; group++) {
                masks_t own = masks + group * OPERANDS * LANES;
#pragma unroll
                for (uint r = 0; r < ROWS; r++)
                    total[r] |= (SELECT(rows->a[r][q], rows->running[r][q], WORDS(own, OPERAND_A, q)) +
                                 SELECT(rows->s[r][q], sum[r][q], WORDS(own, OPERAND_S, q))) &
                                WORDS(own, OPERAND_OUTPUTS, q);
            }
        }
#pragma unroll
        for (uint r = 0; r < ROWS; r++) {
            rows->a[r][q] = rows->running[r][q];
            rows->s[r][q] = sum[r][q];
            sum[r][q] = total[r];
        }
    }
    rows->loaded = first;
    rows->begins = false;
}

// The events that hit ROWS rows: of each, positions of the first that is to come and behind the last, and the step of
// the row that it hits; the soonest of these.
typedef struct {
    uint from[ROWS];
    uint to[ROWS];
    ulong slot[ROWS];
    ulong soonest;
} hits_t;

static ulong next_hit(records_t events, const hits_t *hits, uint r) {
    if (hits->from[r] == hits->to[r])
        return ULONG_MAX;
    return as_uint(vload4(0, events + (ulong)hits->from[r] * EVENT_BYTES + EVENT_SLOT)) - hits->slot[r];
}

static ulong soonest_hit(records_t events, const hits_t *hits) {
    ulong soonest = ULONG_MAX;
    for (uint r = 0; r < ROWS; r++)
        soonest = min(soonest, next_hit(events, hits, r));
    return soonest;
}

// Flips what events say of this step of the rows; how many there were.
static uint hit_rows(records_t events, hits_t *hits, sums_t sum[ROWS][VECTORS]) {
    uint applied = 0;
#pragma unroll
    for (uint r = 0; r < ROWS; r++) {
        if (next_hit(events, hits, r) != hits->soonest)
            continue;
        words_t flips;
        applied += read_flips(events, &hits->from[r], hits->to[r], (uint)(hits->slot[r] + hits->soonest), &flips);
#pragma unroll
        for (uint q = 0; q < VECTORS; q++)
            sum[r][q] ^= flips.wide[q];
    }
    hits->soonest = soonest_hit(events, hits);
    return applied;
}

static void convolve_late(const job_t *job, uint number, uint group, reads_t source, reads_t zeros, reads_t weights,
                          records_t memory, records_t events, uint first_flip, uint last_flip, masks_t banks,
                          __global char *conv, __global uint *status) {
    const group_t shared = read_group(job, memory, group);
    // A job of one output is a row by itself.
    const bool one = job->flags & FLAG_ONE, continues = job->flags & FLAG_CONTINUE;
    const uint width = one ? 1 : job->out_w, count = one ? 1 : job->images * job->out_h;
    uint used[BANKS];
    bool late_trees = false;
    for (uint bank = 0; bank < BANKS; bank++) {
        used[bank] = groups_in_use(banks, bank);
        late_trees |= bank != ACCUMULATOR && used[bank];
    }
    masks_t masks = banks + ACCUMULATOR * BANK_WORDS;
    uint applied = 0;
    for EACH (block, (count + ROWS - 1) / ROWS) {
        const uint first = block * ROWS, here = min((uint)ROWS, count - first);
        rows_t rows;
        trees_t trees;
        hits_t hits;
        rows.begins = true;
        rows.loaded = false;
#pragma unroll
        for (uint r = 0; r < ROWS; r++) {
#pragma unroll
            for (uint q = 0; q < VECTORS; q++) {
                // Where another job's accumulators go on, they are no history.
                rows.running[r][q] = continues ? LANES_AT(q, status + STATUS_CARRIED) : (sums_t)(0);
                rows.a[r][q] = rows.s[r][q] = (sums_t)(0);
            }
            if (late_trees)
                for (uint adder = 0; adder < VEC - 1; adder++)
                    for (uint q = 0; q < VECTORS; q++)
                        trees.a[r][adder][q] = trees.s[r][adder][q] = (sums_t)(0);
            hits.from[r] = hits.to[r] = 0;
            hits.slot[r] = ((ulong)group * count + first + r) * width * job->steps;
            if (first_flip < last_flip && r < here) {
                hits.from[r] = first_event(events, last_flip, number, hits.slot[r]);
                hits.to[r] = first_event(events, last_flip, number, hits.slot[r] + (ulong)width * job->steps);
            }
        }
        hits.soonest = soonest_hit(events, &hits);
        ulong step = 0;
        for (uint x = 0; x < width; x++) {
            place_t at[ROWS];
#pragma unroll
            for (uint r = 0; r < ROWS; r++)
                at[r] = place_of(job, group, (first + (r < here ? r : 0)) * width + x);
            reads_t from = weights;
            bool loads = !continues;
            for (uint z = 0; z < job->groups_in; z++)
                for (uint ky = 0; ky < job->kernel_h; ky++)
                    for (uint kx = 0; kx < job->kernel_w; kx++) {
                        reads_t word[ROWS];
#pragma unroll
                        for (uint r = 0; r < ROWS; r++)
                            word[r] = tap(job, source, zeros, at[r], z, ky, kx);
                        sums_t sum[ROWS][VECTORS];
                        step_sums(banks, used, late_trees, word, from, &trees, sum);
                        capture(masks, used[ACCUMULATOR], &shared, loads, sum, &rows);
                        if (step == hits.soonest)
                            applied += hit_rows(events, &hits, sum);
#pragma unroll
                        for (uint r = 0; r < ROWS; r++)
#pragma unroll
                            for (uint q = 0; q < VECTORS; q++)
                                rows.running[r][q] = used[ACCUMULATOR] ? HELD(masks, q, sum[r][q]) : sum[r][q];
                        from += LANES * VEC;
                        loads = false;
                        step++;
                    }
#pragma unroll
            for (uint r = 0; r < ROWS; r++)
                if (r < here)
                    leave(job, &shared, (first + r) * width + x, rows.running[r], conv, status);
        }
    }
    if (applied)
        atomic_add(status + STATUS_FAULTS, applied);
}
