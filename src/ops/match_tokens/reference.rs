//! The oracle of `match_tokens`: bipartite soft matching (Bolya et al., "Token Merging: Your ViT But
//! Faster", arXiv 2210.09461) as plain loops in f64.

/// The cosine of every row of `a`, `[n, heads, dim]`, and every row of `b`, `[m, heads, dim]`, by head:
/// `[heads, n, m]`. A row of zeros is like nothing: 0.
pub fn cosines(a: &[f64], b: &[f64], heads: usize, dim: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let mut out = Vec::new();
    for head in 0..heads {
        for x in a.chunks_exact(heads * dim) {
            for y in b.chunks_exact(heads * dim) {
                let (x, y) = (&x[head * dim..][..dim], &y[head * dim..][..dim]);
                let norms = (dot(x, x) * dot(y, y)).sqrt();
                out.push(if norms == 0.0 { 0.0 } else { dot(x, y) / norms });
            }
        }
    }
    out
}

/// The mean over heads of `[heads, n]`.
pub fn mean_over_heads(x: &[f64], heads: usize) -> Vec<f64> {
    let n = x.len() / heads;
    let sum = |i| (0..heads).map(|head| x[head * n + i]).sum::<f64>();
    (0..n).map(|i| sum(i) / heads as f64).collect()
}

/// The first of the largest scores.
///
/// ```
/// assert_eq!(packforcing::ops::match_tokens::reference::best(&[1.0, 3.0, 3.0]), 1);
/// ```
pub fn best(scores: &[f64]) -> usize {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    best
}

/// How many sources merge.
#[derive(Debug, Clone, Copy)]
pub enum Chosen {
    /// So many: those most like their destinations; of equal ones the first.
    Top(usize),
    /// All that are at least so like.
    Above(f64),
}

/// Which tokens merge, given every token's similarity to its destination; destinations stay.
pub fn merging(similarity: &[f64], destinations: &[usize], chosen: Chosen) -> Vec<bool> {
    let mut order: Vec<usize> = (0..similarity.len()).filter(|i| !destinations.contains(i)).collect();
    order.sort_by(|&i, &j| similarity[j].total_cmp(&similarity[i])); // stable
    match chosen {
        Chosen::Top(n) => order.truncate(n),
        Chosen::Above(threshold) => order.retain(|&i| similarity[i] >= threshold),
    }
    (0..similarity.len()).map(|i| order.contains(&i)).collect()
}

/// The index of the merged token that every token went into. Merged tokens are the tokens that stay, in
/// their order.
///
/// ```
/// use packforcing::ops::match_tokens::reference::map;
/// assert_eq!(map(&[false, true, false, true], &[0, 2, 2, 0]), [0, 1, 1, 0]);
/// ```
pub fn map(merging: &[bool], nearest: &[usize]) -> Vec<usize> {
    let rank = |i: usize| merging[..i].iter().filter(|&&merges| !merges).count();
    let into = |i: usize| if merging[i] { nearest[i] } else { i };
    (0..merging.len()).map(|i| rank(into(i))).collect()
}

/// The mean, weighted by `sizes`, of the rows of `x`, `[tokens, width]`, that went into each merged token:
/// `[merged, width]`.
pub fn merge(x: &[f64], sizes: &[f64], map: &[usize], width: usize) -> Vec<f64> {
    let total = sum_sizes(sizes, map);
    let mut out = vec![0.0; total.len() * width];
    for (i, &to) in map.iter().enumerate() {
        for c in 0..width {
            out[to * width + c] += sizes[i] * x[i * width + c] / total[to];
        }
    }
    out
}

/// How many tokens each merged token stands for.
pub fn sum_sizes(sizes: &[f64], map: &[usize]) -> Vec<f64> {
    let mut out = vec![0.0; map.iter().max().map_or(0, |last| last + 1)];
    for (size, &to) in sizes.iter().zip(map) {
        out[to] += size;
    }
    out
}

/// Gives every token the row of `x`, `[merged, width]`, that it went into: `[tokens, width]`.
///
/// ```
/// use packforcing::ops::match_tokens::reference::unmerge;
/// assert_eq!(unmerge(&[5.0, 7.0], &[1, 0, 1], 1), [7.0, 5.0, 7.0]);
/// ```
pub fn unmerge(x: &[f64], map: &[usize], width: usize) -> Vec<f64> {
    map.iter()
        .flat_map(|&from| x[from * width..][..width].to_vec())
        .collect()
}
