/* Matrices in panels of columns, and their products.

A panel is as many columns as fill 64 bytes, one row after the other; a matrix [rows, columns] is panel
after panel, its columns filled up to whole ones. Such a matrix is multiplied by from either side, as it is
or turned, and what multiplies it from the right is read in order. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef DOUBLE
typedef double real;
typedef int64_t word;
#else
typedef float real;
typedef int32_t word;
#endif

#define INLINE static inline __attribute__((always_inline))
#define PANEL ((long)(64 / sizeof(real)))

/* TALL is how many rows of a result are summed up in registers at once. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TALL 12
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TALL 6
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define TALL 6
#else
#define VECTOR_BYTES 16
#define TALL 3
#endif

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef word bits __attribute__((vector_size(VECTOR_BYTES)));
#define LANES ((long)(VECTOR_BYTES / sizeof(real)))
#define SPAN (64 / VECTOR_BYTES) /* vectors of a row of a panel */

INLINE vec all(real x) { return x - (vec){0}; }
INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long panels(long columns) { return (columns + PANEL - 1) / PANEL; }
INLINE long padded(long columns) { return panels(columns) * PANEL; }
INLINE long area(long rows, long columns) { return rows * padded(columns); }
INLINE long place(long rows, long row, long column)
{
    return (column / PANEL * rows + row) * PANEL + column % PANEL;
}

/* A product a b that is part of a sum. a is [m, depth], or turned, [depth, m]; b is [depth, n]. Its band may
be all, or for a column's panel only as deep as the panel's last column (UPTO) or from its first on (FROM):
the other side of a triangular matrix is never looked at. */
enum { WHOLE, UPTO, FROM };

typedef struct {
    const real *a;
    long a_rows;
    int turned;
    const real *b;
    long b_rows, depth;
    int band;
} Term;

INLINE Term term(const real *a, long a_rows, int turned, const real *b, long depth)
{
    return (Term){a, a_rows, turned, b, depth, depth, WHOLE};
}

INLINE Term banded(const real *a, long a_rows, const real *b, long depth, int band)
{
    return (Term){a, a_rows, 0, b, depth, depth, band};
}

INLINE void step(const int n, vec sum[][SPAN], const real *a, long apart, const real *b)
{
    vec row[SPAN];
    for (int v = 0; v < SPAN; v++)
        row[v] = ((const vec *)b)[v];
#pragma GCC unroll 12
    for (int r = 0; r < n; r++) {
        vec x = all(a[r * apart]);
        for (int v = 0; v < SPAN; v++)
            sum[r][v] += x * row[v];
    }
}

/* Adds the term's rows i to i + n, panel j. */
INLINE void accumulate(const int n, vec sum[][SPAN], const Term *x, long i, long j)
{
    long first = x->band == FROM ? j * PANEL : 0;
    long last = x->band == UPTO ? least(x->depth, (j + 1) * PANEL) : x->depth;
    const real *b = x->b + (j * x->b_rows + first) * PANEL;
    if (x->turned) {
        const real *a = x->a + (i / PANEL * x->a_rows + first) * PANEL + i % PANEL;
        for (long k = first; k < last; k++, a += PANEL, b += PANEL)
            step(n, sum, a, 1, b);
        return;
    }
    const real *a = x->a + (first / PANEL * x->a_rows + i) * PANEL;
    for (long k = first; k < last; k += PANEL, a += x->a_rows * PANEL) {
        long here = least(PANEL, last - k);
        for (long d = 0; d < here; d++, b += PANEL)
            step(n, sum, a + d, PANEL, b);
    }
}

/* What is computed: out = sum of the terms, or added to it; each column times its `scale`, after `dots` of
it has got the product of that column with the one of `with`. */
typedef struct {
    real *out;
    long rows, panels;
    int count;
    Term terms[4];
    int add;
    int triangle; /* only rows up to a panel's last column */
    const real *scale;
    const real *with;
    real *dots;
} Product;

/* Rows of the next tile, about equal ones; turned, they stay within a panel of the left factor. */
INLINE long tile_rows(long rows, long i, int turned)
{
    long left = rows - i;
    if (turned)
        left = least(left, PANEL - i % PANEL);
    long tiles = (left + TALL - 1) / TALL;
    return (left + tiles - 1) / tiles;
}

#if TALL > 6
#define MORE_TILES(tile, ...)                                                                      \
    case 7: tile(7, __VA_ARGS__); break;                                                           \
    case 8: tile(8, __VA_ARGS__); break;                                                           \
    case 9: tile(9, __VA_ARGS__); break;                                                           \
    case 10: tile(10, __VA_ARGS__); break;                                                         \
    case 11: tile(11, __VA_ARGS__); break;                                                         \
    case 12: tile(12, __VA_ARGS__); break;
#else
#define MORE_TILES(tile, ...)
#endif

/* Runs `tile(rows, ..., i, j)` over a matrix, the number of rows a constant for the compiler. */
#define FOR_TILES(total, columns, turned, tile, ...)                                               \
    for (long i = 0, n; i < (total); i += n) {                                                     \
        n = tile_rows(total, i, turned);                                                           \
        for (long j = 0; j < (columns); j++)                                                       \
            switch (n) {                                                                           \
            case 1: tile(1, __VA_ARGS__, i, j); break;                                             \
            case 2: tile(2, __VA_ARGS__, i, j); break;                                             \
            case 3: tile(3, __VA_ARGS__, i, j); break;                                             \
            case 4: tile(4, __VA_ARGS__, i, j); break;                                             \
            case 5: tile(5, __VA_ARGS__, i, j); break;                                             \
            case 6: tile(6, __VA_ARGS__, i, j); break;                                             \
                MORE_TILES(tile, __VA_ARGS__, i, j)                                                \
            }                                                                                      \
    }

INLINE void clear(const int n, vec sum[][SPAN])
{
#pragma GCC unroll 12
    for (int r = 0; r < n; r++)
        for (int v = 0; v < SPAN; v++)
            sum[r][v] = (vec){0};
}

INLINE void plain_tile(const int n, const Product *p, long i, long j)
{
    if (p->triangle && i >= (j + 1) * PANEL)
        return;
    vec sum[TALL][SPAN];
    clear(n, sum);
    for (int s = 0; s < p->count; s++)
        accumulate(n, sum, &p->terms[s], i, j);
    vec *out = (vec *)(p->out + (j * p->rows + i) * PANEL);
#pragma GCC unroll 12
    for (int r = 0; r < n; r++)
        for (int v = 0; v < SPAN; v++)
            out[r * SPAN + v] = p->add ? out[r * SPAN + v] + sum[r][v] : sum[r][v];
}

INLINE void scaled_tile(const int n, const Product *p, long i, long j)
{
    vec sum[TALL][SPAN];
    clear(n, sum);
    for (int s = 0; s < p->count; s++)
        accumulate(n, sum, &p->terms[s], i, j);
    long at = (j * p->rows + i) * PANEL;
    vec *out = (vec *)(p->out + at);
    const vec *scale = (const vec *)(p->scale + j * PANEL);
    if (p->dots) {
        const vec *with = (const vec *)(p->with + at);
        vec *dots = (vec *)(p->dots + j * PANEL);
#pragma GCC unroll 12
        for (int r = 0; r < n; r++)
            for (int v = 0; v < SPAN; v++)
                dots[v] += sum[r][v] * with[r * SPAN + v];
    }
#pragma GCC unroll 12
    for (int r = 0; r < n; r++)
        for (int v = 0; v < SPAN; v++) {
            vec x = sum[r][v] * scale[v];
            out[r * SPAN + v] = p->add ? out[r * SPAN + v] + x : x;
        }
}

static void multiply(const Product *p)
{
    int turned = 0;
    for (int s = 0; s < p->count; s++)
        turned |= p->terms[s].turned;
    if (p->scale) {
        FOR_TILES(p->rows, p->panels, turned, scaled_tile, p)
    } else {
        FOR_TILES(p->rows, p->panels, turned, plain_tile, p)
    }
}

/* out [columns, rows] = x [rows, columns], with zeros in what fills up out's panels. */
static void turn(real *out, const real *x, long rows, long columns)
{
    for (long r = 0; r < padded(rows); r += PANEL)
        for (long c = 0; c < columns; c += PANEL) {
            real *to = out + (r / PANEL * columns + c) * PANEL;
            const real *from = x + (c / PANEL * rows + r) * PANEL;
            long wide = least(PANEL, columns - c), tall = least(PANEL, rows - r);
            for (long d = 0; d < wide; d++)
                for (long s = 0; s < PANEL; s++)
                    to[d * PANEL + s] = s < tall ? from[s * PANEL + d] : 0;
        }
}
