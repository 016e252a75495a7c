//! The oracle of `append_kv`: the formulas as plain loops in f64.

/// Position of every token of a grid, in token order: `start + step * (t, r, c)`, and `origin` added to
/// the time.
///
/// ```
/// use packforcing::ops::append_kv::reference::positions;
/// let p = positions([2, 1, 2], [0.5, 0.0, 0.0], [1.0, 1.0, 4.0], 100.0);
/// assert_eq!(p[3], [101.5, 0.0, 4.0]);
/// ```
pub fn positions(grid: [usize; 3], start: [f64; 3], step: [f64; 3], origin: f64) -> Vec<[f64; 3]> {
    let mut positions = Vec::new();
    for t in 0..grid[0] {
        for r in 0..grid[1] {
            for c in 0..grid[2] {
                positions.push([
                    start[0] + step[0] * t as f64 + origin,
                    start[1] + step[1] * r as f64,
                    start[2] + step[2] * c as f64,
                ]);
            }
        }
    }
    positions
}

/// RMSNorm of every row of `weight.len()` values: `x / sqrt(mean(x^2) + eps) * weight`.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        for (x, w) in row.iter().zip(weight) {
            out.push(x / (mean + eps).sqrt() * w);
        }
    }
    out
}

/// Turns one head's interleaved pairs ahead by its position: pair i of the n of an axis by
/// `position[axis] * theta^(-i / n)` radians; first the pairs of time, then row, then column.
pub fn rotate(head: &mut [f64], pairs: [usize; 3], theta: f64, position: [f64; 3]) {
    let mut at = 0;
    for axis in 0..3 {
        for i in 0..pairs[axis] {
            let angle = position[axis] * theta.powf(-(i as f64) / pairs[axis] as f64);
            let (x, y) = (head[at], head[at + 1]);
            head[at] = x * angle.cos() - y * angle.sin();
            head[at + 1] = x * angle.sin() + y * angle.cos();
            at += 2;
        }
    }
}

/// Writes the rows of one stream, `[tokens, heads, dim]`, into `pages`,
/// `[pages, heads, page_tokens, dim]`: token i into slot `i % page_tokens` of page
/// `list[i / page_tokens]`. What is left of the last page becomes 0.
pub fn write_pages(pages: &mut [f64], rows: &[f64], list: &[usize], [heads, page_tokens, dim]: [usize; 3]) {
    let tokens = rows.len() / (heads * dim);
    for i in 0..tokens.next_multiple_of(page_tokens) {
        for h in 0..heads {
            let to = ((list[i / page_tokens] * heads + h) * page_tokens + i % page_tokens) * dim;
            for d in 0..dim {
                pages[to + d] = if i < tokens {
                    rows[(i * heads + h) * dim + d]
                } else {
                    0.0
                };
            }
        }
    }
}
