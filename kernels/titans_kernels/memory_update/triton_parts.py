"""What the Triton kernels are made of: tiles, products, the MLP's own pieces, and how programs meet.

C tokens in a chunk, D width of a head, E hidden width; DP and ES the sides of the tiles they stand in.
"""

# mypy: disallow-untyped-defs=False
# A kernel's arguments have no types that Python knows.

import triton
import triton.language as tl


@triton.jit
def height_of(part, E: tl.constexpr, ES: tl.constexpr):
    """What there is of a slice."""
    height = ES
    if E % ES != 0:
        height = E - part * ES
    return height


@triton.jit
def load_tile(
    source, height, width, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Rows of `stride` apart, with zeros beyond height and width."""
    i, j = tl.arange(0, HEIGHT)[:, None], tl.arange(0, WIDTH)[None, :]
    return tl.load(source + i * STRIDE + j, mask=(i < height) & (j < width), other=0.0)


@triton.jit
def store_tile(target, x, height, width, STRIDE: tl.constexpr):
    i, j = tl.arange(0, x.shape[0])[:, None], tl.arange(0, x.shape[1])[None, :]
    tl.store(target + i * STRIDE + j, x, mask=(i < height) & (j < width))


@triton.jit
def load_row(source, SIZE: tl.constexpr):
    return tl.load(source + tl.arange(0, SIZE))


@triton.jit
def load_slope(source, D: tl.constexpr, DP: tl.constexpr):
    j = tl.arange(0, DP)
    return tl.load(source + j, mask=j < D, other=0.0)[None, :]


@triton.jit
def store_row(target, x):
    tl.store(target + tl.arange(0, x.shape[0]), x)


@triton.jit
def product(x, y, PRECISION: tl.constexpr):
    return tl.dot(x, y, input_precision=PRECISION, out_dtype=x.dtype)


@triton.jit
def add_product(total, x, y, PRECISION: tl.constexpr):
    return tl.dot(x, y, acc=total, input_precision=PRECISION, out_dtype=x.dtype)


@triton.jit
def normal_tail(z, bell):
    """Of the normal distribution beyond |z|, with bell = exp(-z^2 / 2), to 1e-7 of itself.

    A polynomial in 1 / (1 + 0.4 |z| / sqrt(2)), fitted to the scaled complementary error function. The exact
    one has branches, which cost as many registers as all else.
    """
    t = 1.0 / (1.0 + 0.282842712 * tl.abs(z))
    x = 0.03403993 * t - 0.183160018
    x = x * t + 0.31541525
    x = x * t - 0.159548493
    x = x * t + 0.1880354
    x = x * t + 0.0754991822
    x = x * t + 0.11716109
    x = x * t + 0.112557609
    return x * t * bell


@triton.jit
def derivatives(z, GELU: tl.constexpr):
    """The activation of z with its first and second derivative."""
    if GELU:
        bell = tl.exp(-0.5 * z * z)
        if z.dtype == tl.float64:
            cdf = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
        else:
            tail = normal_tail(z, bell)
            cdf = tl.where(z < 0.0, tail, 1.0 - tail)
        pdf = bell * 0.3989422804014327
        x, slope, curve = z * cdf, cdf + z * pdf, pdf * (2.0 - z * z)
    else:
        gate = 1.0 / (1.0 + tl.exp(-z))
        rise = gate * (1.0 - gate)
        x, slope, curve = z * gate, gate + z * rise, rise * (2.0 + z * (1.0 - 2.0 * gate))
    return x, slope, curve


@triton.jit
def matrix_at(
    own, base, held, n, tall, D: tl.constexpr, DP: tl.constexpr, ES: tl.constexpr, BASE: tl.constexpr,
    HELD: tl.constexpr,
):  # fmt: skip
    """The weights that chunk n's gradients were taken at."""
    if HELD:
        own = tl.where(n == 0, held, own)
    V = load_tile(own, tall, D, D, ES, DP)
    if BASE:
        V += load_tile(base, tall, D, D, ES, DP)
    return V


@triton.jit
def mean(x, D: tl.constexpr):
    """Of every row; what stands beyond D is zero."""
    return (tl.sum(x, 1) / D)[:, None]


@triton.jit
def normalize(z, D: tl.constexpr):
    """Rows with mean 0 and variance 1, and the reciprocal deviation."""
    inside = (tl.arange(0, z.shape[1]) < D)[None, :]
    centred = tl.where(inside, z - mean(z, D), 0.0)
    rstd = 1.0 / tl.sqrt(mean(centred * centred, D) + 1e-5)
    return centred * rstd, rstd


@triton.jit
def normalize_backward(grad, normed, rstd, D: tl.constexpr):
    """Gradient with respect to the input of `normalize`, from that of its output."""
    inside = (tl.arange(0, grad.shape[1]) < D)[None, :]
    along = mean(grad * normed, D)
    return tl.where(inside, rstd * (grad - mean(grad, D) - normed * along), 0.0)


@triton.jit
def outer_error(z, given, slope, D: tl.constexpr, NORM: tl.constexpr):
    """D_L, from the last sum; the loss's derivative by the normed sum is `given` and `slope` times it."""
    if NORM:
        normed, rstd = normalize(z, D)
        error = normalize_backward(given + slope * normed, normed, rstd, D)
    else:
        error = given + slope * z
    return error


@triton.jit
def outer_backward(d_error, z, given, slope, D: tl.constexpr, NORM: tl.constexpr):
    """Gradients by `given` and by the last sum, from that by D_L; the README derives them."""
    if NORM:
        normed, rstd = normalize(z, D)
        loss = given + slope * normed
        error = normalize_backward(loss, normed, rstd, D)
        by_given = normalize_backward(d_error, normed, rstd, D)
        shares = mean(loss * normed, D) * by_given + mean(d_error * normed, D) * error
        shares += mean(d_error * error, D) * normed
        d_z = normalize_backward(by_given * slope, normed, rstd, D) - rstd * shares
    else:
        by_given = d_error
        d_z = d_error * slope
    return by_given, d_z


@triton.jit
def clamp_of(square, LIMIT: tl.constexpr):
    """What a gradient is multiplied by to have at most the norm LIMIT, from its norm's square."""
    return LIMIT / tl.maximum(tl.sqrt(square), LIMIT)


@triton.jit
def place_of(ticket, SLICES: tl.constexpr):
    """This program's row and slice.

    Programs that wait for each other hold consecutive tickets, taken as they start: of the rows that have
    not ended, the first has all its programs running, whatever the order in which a device starts them.
    """
    if SLICES == 1:
        row, part = tl.program_id(0), 0
    else:
        turn = tl.atomic_add(ticket, 1)
        row, part = turn // SLICES, turn % SLICES
    return row, part


@triton.jit
def meet(counter, arrivals, SLICES: tl.constexpr):
    """Waits until so many arrivals, this one counted, have come: what they stored before is seen then."""
    tl.debug_barrier()
    if SLICES > 1:
        tl.atomic_add(counter, 1, sem="release")
        while tl.atomic_add(counter, 0, sem="acquire") < arrivals:
            pass
        tl.debug_barrier()


@triton.jit
def put_tile(room, x, part):
    """Where `sum_tiles` will find it."""
    height: tl.constexpr = x.shape[0]
    width: tl.constexpr = x.shape[1]
    store_tile(room + part * height * width, x, height, width, width)


@triton.jit
def sum_tiles(
    room, row, SLICES: tl.constexpr, C: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Some rows of the sum over the slices' tiles [C, WIDTH].

    Always in the same order, and past the first cache, which does not know of other programs.
    """
    i, j = tl.arange(0, HEIGHT)[:, None], tl.arange(0, WIDTH)[None, :]
    place = room + (row + i) * WIDTH + j
    total = tl.load(place, cache_modifier=".cg")
    for part in tl.range(1, SLICES, disable_licm=True):
        total += tl.load(place + part * C * WIDTH, cache_modifier=".cg")
    return total


@triton.jit
def put_row(room, x, part):
    tl.store(room + part * x.shape[0] + tl.arange(0, x.shape[0]), x)


@triton.jit
def sum_rows(room, SLICES: tl.constexpr, SIZE: tl.constexpr):
    place = room + tl.arange(0, SIZE)
    total = tl.load(place, cache_modifier=".cg")
    for part in tl.range(1, SLICES, disable_licm=True):
        total += tl.load(place + part * SIZE, cache_modifier=".cg")
    return total
