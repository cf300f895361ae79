/* The memory MLP's activation and layer norm, with the derivatives that the update needs. */

#define EPSILON ((real)1e-5)

INLINE vec choose(bits where, vec a, vec b)
{
    return (vec)((where & (bits)a) | (~where & (bits)b));
}

INLINE vec most(vec x, real limit) { return choose(x > all(limit), all(limit), x); }
INLINE vec at_least(vec x, real limit) { return choose(x < all(limit), all(limit), x); }

/* exp of x up to 80, by powers of two and a Taylor series; NaN stays NaN. */
INLINE vec exponential(vec x)
{
#ifdef DOUBLE
    const real magic = 6755399441055744.0;
    const real high = 6.93147180369123816490e-01, low = 1.90821492927058770002e-10;
    const int terms = 13, mantissa = 52;
    x = at_least(x, -700);
#else
    const real magic = 12582912.0f, high = 0.693145751953125f, low = 1.42860682e-6f;
    const int terms = 7, mantissa = 23;
    x = at_least(x, -87);
#endif
    vec shifted = x * (real)1.4426950408889634 + magic, n = shifted - magic;
    vec r = x - n * high - n * low, sum = all(1);
#pragma GCC unroll 13
    for (int k = terms; k > 0; k--)
        sum = 1 + r * sum * ((real)1 / k);
    return (vec)((bits)sum + ((bits)shifted << mantissa));
}

/* The normal distribution function, with error below 3e-7 in float32. */
INLINE vec normal_cdf(vec z)
{
#ifdef DOUBLE
    vec out;
    for (int i = 0; i < LANES; i++)
        out[i] = 0.5 * erfc(-0.70710678118654752440 * z[i]);
    return out;
#else
    z = at_least(most(z, 5.4f), -5.4f);
    vec t = z * z;
    vec p = 0.39894171474921536f + t * (0.054898179315767376f + t * (0.005906196636688291f
        + t * (0.00037308293535361753f + t * 6.7623874267736525e-06f)));
    vec q = 1 + t * (0.3042669409824225f + t * (0.0405322171046146f + t * (0.0030465334714982486f
        + t * (0.00013387401213592117f + t * 5.633669760142882e-07f))));
    return z * p / q + 0.5f;
#endif
}

INLINE vec normal_density(vec z)
{
    return exponential(at_least(z * z * (real)-0.5, -80)) * (real)0.39894228040143267794;
}

INLINE vec sigmoid(vec z) { return 1 / (1 + exponential(most(-z, 80))); }

static void activate(real *out, const real *in, long count, int silu)
{
    vec *x = (vec *)out;
    const vec *z = (const vec *)in;
    if (silu)
        for (long i = 0; i < count / LANES; i++)
            x[i] = z[i] * sigmoid(z[i]);
    else
        for (long i = 0; i < count / LANES; i++)
            x[i] = z[i] * normal_cdf(z[i]);
}

INLINE void slope_of(vec z, int silu, vec *value, vec *slope, vec *bend)
{
    if (silu) {
        vec gate = sigmoid(z), rise = gate * (1 - gate);
        *value = z * gate;
        *slope = gate + z * rise;
        *bend = rise * (2 + z * (1 - 2 * gate));
    } else {
        vec cdf = normal_cdf(z), density = normal_density(z);
        *value = z * cdf;
        *slope = cdf + z * density;
        *bend = density * (2 - z * z);
    }
}

/* Activation and its first derivative, and with `bend` the second. */
static void activate_with_slope(real *out, real *slope, real *bend, const real *in, long count, int silu)
{
    for (long i = 0; i < count; i += LANES) {
        vec value, first, second;
        slope_of(*(const vec *)(in + i), silu, &value, &first, &second);
        *(vec *)(out + i) = value;
        *(vec *)(slope + i) = first;
        if (bend)
            *(vec *)(bend + i) = second;
    }
}

INLINE vec root(vec x)
{
    vec out;
    for (int i = 0; i < LANES; i++)
        out[i] = (real)sqrt(x[i]);
    return out;
}

/* Columns of z [width, tokens] with mean 0 and variance 1, and the reciprocal deviations. */
static void normalize(real *out, real *rstd, const real *z, long width, long tokens)
{
    for (long t = 0; t < padded(tokens); t += LANES) {
        const real *from = z + place(width, 0, t);
        real *to = out + place(width, 0, t);
        vec sum = {0}, square = {0};
        for (long d = 0; d < width; d++)
            sum += *(const vec *)(from + d * PANEL);
        sum /= (real)width;
        for (long d = 0; d < width; d++) {
            vec x = *(const vec *)(from + d * PANEL) - sum;
            square += x * x;
        }
        vec scale = 1 / root(square / (real)width + EPSILON);
        *(vec *)(rstd + t) = scale;
        for (long d = 0; d < width; d++)
            *(vec *)(to + d * PANEL) = (*(const vec *)(from + d * PANEL) - sum) * scale;
    }
}

/* The gradient by z from that by `normalize`'s output: the norm's derivative J, which is symmetric. */
static void normalize_backward(
    real *out, const real *grad, const real *normed, const real *rstd, long width, long tokens)
{
    for (long t = 0; t < padded(tokens); t += LANES) {
        long at = place(width, 0, t);
        vec mean = {0}, along = {0}, scale = *(const vec *)(rstd + t);
        for (long d = 0; d < width; d++) {
            vec g = *(const vec *)(grad + at + d * PANEL);
            mean += g;
            along += g * *(const vec *)(normed + at + d * PANEL);
        }
        mean /= (real)width;
        along /= (real)width;
        for (long d = 0; d < width; d++) {
            vec g = *(const vec *)(grad + at + d * PANEL), x = *(const vec *)(normed + at + d * PANEL);
            *(vec *)(out + at + d * PANEL) = scale * (g - mean - x * along);
        }
    }
}
