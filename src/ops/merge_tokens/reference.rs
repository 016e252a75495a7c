//! The oracle of `merge_tokens`: the formulas as plain loops in f64.

use std::ops::Range;

/// The cells of a grid in the order of their merged tokens: the range of each along time, rows and
/// columns. `keep`: what does not fill a cell makes a smaller one; otherwise it is left out.
///
/// ```
/// use packforcing::ops::merge_tokens::reference::cells;
/// assert_eq!(cells([1, 1, 5], [1, 1, 4], false), [[0..1, 0..1, 0..4]]);
/// assert_eq!(cells([1, 1, 5], [1, 1, 4], true)[1], [0..1, 0..1, 4..5]);
/// ```
pub fn cells(grid: [usize; 3], cell: [usize; 3], keep: bool) -> Vec<[Range<usize>; 3]> {
    let along = |axis: usize| {
        let (n, size) = (grid[axis], cell[axis]);
        (0..n)
            .step_by(size)
            .filter(move |first| keep || first + size <= n)
            .map(move |first| first..(first + size).min(n))
    };
    let mut cells = Vec::new();
    for t in along(0) {
        for r in along(1) {
            for c in along(2) {
                cells.push([t.clone(), r.clone(), c]);
            }
        }
    }
    cells
}

/// The mean of every cell's rows of `x`, `[tokens, width]`: `[cells, width]`.
pub fn mean_pool(x: &[f64], grid: [usize; 3], cells: &[[Range<usize>; 3]], width: usize) -> Vec<f64> {
    let mut out = vec![0.0; cells.len() * width];
    for (cell, out) in cells.iter().zip(out.chunks_exact_mut(width)) {
        let size: usize = cell.iter().map(Range::len).product();
        for t in cell[0].clone() {
            for r in cell[1].clone() {
                for c in cell[2].clone() {
                    let token = (t * grid[1] + r) * grid[2] + c;
                    for (out, x) in out.iter_mut().zip(&x[token * width..]) {
                        *out += x / size as f64;
                    }
                }
            }
        }
    }
    out
}

/// Turns every row of `x`, `[rows, heads, dim]`, by `sign` times its position.
pub fn turn(x: &mut [f64], heads: usize, pairs: [usize; 3], theta: f64, positions: &[[f64; 3]], sign: f64) {
    let dim = 2 * pairs.iter().sum::<usize>();
    for (row, position) in x.chunks_exact_mut(heads * dim).zip(positions) {
        for head in row.chunks_exact_mut(dim) {
            let mut at = 0;
            for axis in 0..3 {
                for i in 0..pairs[axis] {
                    let angle = sign * position[axis] * theta.powf(-(i as f64) / pairs[axis] as f64);
                    let (x, y) = (head[at], head[at + 1]);
                    head[at] = x * angle.cos() - y * angle.sin();
                    head[at + 1] = x * angle.sin() + y * angle.cos();
                    at += 2;
                }
            }
        }
    }
}

/// Merges keys, `[tokens, heads, dim]`, that were rotated at their own (t, r, c): each is turned back,
/// the cell's mean is taken, and turned to the mean of the cell's positions.
pub fn merge_keys(
    k: &[f64],
    grid: [usize; 3],
    cells: &[[Range<usize>; 3]],
    heads: usize,
    pairs: [usize; 3],
    theta: f64,
) -> Vec<f64> {
    let own: Vec<[f64; 3]> = (0..grid.iter().product())
        .map(|i| [i / (grid[1] * grid[2]), i / grid[2] % grid[1], i % grid[2]].map(|x| x as f64))
        .collect();
    let centroids: Vec<[f64; 3]> = cells
        .iter()
        .map(|cell| std::array::from_fn(|axis| (cell[axis].start + cell[axis].end - 1) as f64 / 2.0))
        .collect();
    let mut k = k.to_vec();
    turn(&mut k, heads, pairs, theta, &own, -1.0);
    let mut merged = mean_pool(&k, grid, cells, heads * 2 * pairs.iter().sum::<usize>());
    turn(&mut merged, heads, pairs, theta, &centroids, 1.0);
    merged
}

/// The natural log of every cell's size: what proportional attention adds to the logits.
pub fn log_sizes(cells: &[[Range<usize>; 3]]) -> Vec<f64> {
    cells
        .iter()
        .map(|cell| (cell.iter().map(Range::len).product::<usize>() as f64).ln())
        .collect()
}
