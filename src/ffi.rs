// Generated from kernels/params.h by bindgen (feature `buildtime-bindgen`); do not edit.

pub const PF_MAX_PAIRS: u32 = 64;
pub const PF_MAX_TERMS: u32 = 8;
pub const PF_MAX_OUTPUTS: u32 = 4;
pub const PF_DTYPE_F32: u32 = 0;
pub const PF_DTYPE_F16: u32 = 1;
pub const PF_DTYPE_BF16: u32 = 2;
pub const PF_MOMENTS_PART: u32 = 4096;
pub const PF_MOMENTS: u32 = 5;
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct Segment {
    pub first_page: i32,
    pub tokens: i32,
    pub rotation: f32,
    pub key_bias: f32,
    pub slot_bias: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Segment"][::core::mem::size_of::<Segment>() - 24usize];
    ["Alignment of Segment"][::core::mem::align_of::<Segment>() - 4usize];
    ["Offset of field: Segment::first_page"][::core::mem::offset_of!(Segment, first_page) - 0usize];
    ["Offset of field: Segment::tokens"][::core::mem::offset_of!(Segment, tokens) - 4usize];
    ["Offset of field: Segment::rotation"][::core::mem::offset_of!(Segment, rotation) - 8usize];
    ["Offset of field: Segment::key_bias"][::core::mem::offset_of!(Segment, key_bias) - 12usize];
    ["Offset of field: Segment::slot_bias"][::core::mem::offset_of!(Segment, slot_bias) - 16usize];
    ["Offset of field: Segment::reserved"][::core::mem::offset_of!(Segment, reserved) - 20usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct RopeParams {
    pub turns: [f64; 64usize],
    pub pairs: [i32; 3usize],
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RopeParams"][::core::mem::size_of::<RopeParams>() - 528usize];
    ["Alignment of RopeParams"][::core::mem::align_of::<RopeParams>() - 8usize];
    ["Offset of field: RopeParams::turns"][::core::mem::offset_of!(RopeParams, turns) - 0usize];
    ["Offset of field: RopeParams::pairs"][::core::mem::offset_of!(RopeParams, pairs) - 512usize];
    ["Offset of field: RopeParams::reserved"][::core::mem::offset_of!(RopeParams, reserved) - 524usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct AttentionParams {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub slot_bias: u64,
    pub pages: u64,
    pub segments: u64,
    pub counts: u64,
    pub out: u64,
    pub lse: u64,
    pub q_strides: [i64; 3usize],
    pub k_strides: [i64; 3usize],
    pub v_strides: [i64; 3usize],
    pub bias_strides: [i64; 2usize],
    pub out_strides: [i64; 3usize],
    pub lse_strides: [i64; 2usize],
    pub rope: RopeParams,
    pub streams: i32,
    pub q_tokens: i32,
    pub q_heads: i32,
    pub kv_heads: i32,
    pub page_tokens: i32,
    pub max_pages: i32,
    pub max_segments: i32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionParams"][::core::mem::size_of::<AttentionParams>() - 760usize];
    ["Alignment of AttentionParams"][::core::mem::align_of::<AttentionParams>() - 8usize];
    ["Offset of field: AttentionParams::q"][::core::mem::offset_of!(AttentionParams, q) - 0usize];
    ["Offset of field: AttentionParams::k"][::core::mem::offset_of!(AttentionParams, k) - 8usize];
    ["Offset of field: AttentionParams::v"][::core::mem::offset_of!(AttentionParams, v) - 16usize];
    ["Offset of field: AttentionParams::slot_bias"][::core::mem::offset_of!(AttentionParams, slot_bias) - 24usize];
    ["Offset of field: AttentionParams::pages"][::core::mem::offset_of!(AttentionParams, pages) - 32usize];
    ["Offset of field: AttentionParams::segments"][::core::mem::offset_of!(AttentionParams, segments) - 40usize];
    ["Offset of field: AttentionParams::counts"][::core::mem::offset_of!(AttentionParams, counts) - 48usize];
    ["Offset of field: AttentionParams::out"][::core::mem::offset_of!(AttentionParams, out) - 56usize];
    ["Offset of field: AttentionParams::lse"][::core::mem::offset_of!(AttentionParams, lse) - 64usize];
    ["Offset of field: AttentionParams::q_strides"][::core::mem::offset_of!(AttentionParams, q_strides) - 72usize];
    ["Offset of field: AttentionParams::k_strides"][::core::mem::offset_of!(AttentionParams, k_strides) - 96usize];
    ["Offset of field: AttentionParams::v_strides"][::core::mem::offset_of!(AttentionParams, v_strides) - 120usize];
    ["Offset of field: AttentionParams::bias_strides"]
        [::core::mem::offset_of!(AttentionParams, bias_strides) - 144usize];
    ["Offset of field: AttentionParams::out_strides"][::core::mem::offset_of!(AttentionParams, out_strides) - 160usize];
    ["Offset of field: AttentionParams::lse_strides"][::core::mem::offset_of!(AttentionParams, lse_strides) - 184usize];
    ["Offset of field: AttentionParams::rope"][::core::mem::offset_of!(AttentionParams, rope) - 200usize];
    ["Offset of field: AttentionParams::streams"][::core::mem::offset_of!(AttentionParams, streams) - 728usize];
    ["Offset of field: AttentionParams::q_tokens"][::core::mem::offset_of!(AttentionParams, q_tokens) - 732usize];
    ["Offset of field: AttentionParams::q_heads"][::core::mem::offset_of!(AttentionParams, q_heads) - 736usize];
    ["Offset of field: AttentionParams::kv_heads"][::core::mem::offset_of!(AttentionParams, kv_heads) - 740usize];
    ["Offset of field: AttentionParams::page_tokens"][::core::mem::offset_of!(AttentionParams, page_tokens) - 744usize];
    ["Offset of field: AttentionParams::max_pages"][::core::mem::offset_of!(AttentionParams, max_pages) - 748usize];
    ["Offset of field: AttentionParams::max_segments"]
        [::core::mem::offset_of!(AttentionParams, max_segments) - 752usize];
    ["Offset of field: AttentionParams::scale"][::core::mem::offset_of!(AttentionParams, scale) - 756usize];
};
#[repr(C)]
#[repr(align(128))]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct TensorMap {
    pub words: [u64; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TensorMap"][::core::mem::size_of::<TensorMap>() - 128usize];
    ["Alignment of TensorMap"][::core::mem::align_of::<TensorMap>() - 128usize];
    ["Offset of field: TensorMap::words"][::core::mem::offset_of!(TensorMap, words) - 0usize];
};
#[repr(C)]
#[repr(align(128))]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct AttentionSm90Params {
    pub k: TensorMap,
    pub v: TensorMap,
    pub a: AttentionParams,
    pub box_tokens: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionSm90Params"][::core::mem::size_of::<AttentionSm90Params>() - 1024usize];
    ["Alignment of AttentionSm90Params"][::core::mem::align_of::<AttentionSm90Params>() - 128usize];
    ["Offset of field: AttentionSm90Params::k"][::core::mem::offset_of!(AttentionSm90Params, k) - 0usize];
    ["Offset of field: AttentionSm90Params::v"][::core::mem::offset_of!(AttentionSm90Params, v) - 128usize];
    ["Offset of field: AttentionSm90Params::a"][::core::mem::offset_of!(AttentionSm90Params, a) - 256usize];
    ["Offset of field: AttentionSm90Params::box_tokens"]
        [::core::mem::offset_of!(AttentionSm90Params, box_tokens) - 1016usize];
    ["Offset of field: AttentionSm90Params::reserved"]
        [::core::mem::offset_of!(AttentionSm90Params, reserved) - 1020usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct MergeStatesParams {
    pub a_out: u64,
    pub a_lse: u64,
    pub b_out: u64,
    pub b_lse: u64,
    pub out: u64,
    pub lse: u64,
    pub a_strides: [i64; 2usize],
    pub b_strides: [i64; 2usize],
    pub out_strides: [i64; 2usize],
    pub a_lse_stride: i64,
    pub b_lse_stride: i64,
    pub lse_stride: i64,
    pub rows: i64,
    pub heads: i32,
    pub dim: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MergeStatesParams"][::core::mem::size_of::<MergeStatesParams>() - 136usize];
    ["Alignment of MergeStatesParams"][::core::mem::align_of::<MergeStatesParams>() - 8usize];
    ["Offset of field: MergeStatesParams::a_out"][::core::mem::offset_of!(MergeStatesParams, a_out) - 0usize];
    ["Offset of field: MergeStatesParams::a_lse"][::core::mem::offset_of!(MergeStatesParams, a_lse) - 8usize];
    ["Offset of field: MergeStatesParams::b_out"][::core::mem::offset_of!(MergeStatesParams, b_out) - 16usize];
    ["Offset of field: MergeStatesParams::b_lse"][::core::mem::offset_of!(MergeStatesParams, b_lse) - 24usize];
    ["Offset of field: MergeStatesParams::out"][::core::mem::offset_of!(MergeStatesParams, out) - 32usize];
    ["Offset of field: MergeStatesParams::lse"][::core::mem::offset_of!(MergeStatesParams, lse) - 40usize];
    ["Offset of field: MergeStatesParams::a_strides"][::core::mem::offset_of!(MergeStatesParams, a_strides) - 48usize];
    ["Offset of field: MergeStatesParams::b_strides"][::core::mem::offset_of!(MergeStatesParams, b_strides) - 64usize];
    ["Offset of field: MergeStatesParams::out_strides"]
        [::core::mem::offset_of!(MergeStatesParams, out_strides) - 80usize];
    ["Offset of field: MergeStatesParams::a_lse_stride"]
        [::core::mem::offset_of!(MergeStatesParams, a_lse_stride) - 96usize];
    ["Offset of field: MergeStatesParams::b_lse_stride"]
        [::core::mem::offset_of!(MergeStatesParams, b_lse_stride) - 104usize];
    ["Offset of field: MergeStatesParams::lse_stride"]
        [::core::mem::offset_of!(MergeStatesParams, lse_stride) - 112usize];
    ["Offset of field: MergeStatesParams::rows"][::core::mem::offset_of!(MergeStatesParams, rows) - 120usize];
    ["Offset of field: MergeStatesParams::heads"][::core::mem::offset_of!(MergeStatesParams, heads) - 128usize];
    ["Offset of field: MergeStatesParams::dim"][::core::mem::offset_of!(MergeStatesParams, dim) - 132usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct AppendKvParams {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub q_weight: u64,
    pub k_weight: u64,
    pub q_out: u64,
    pub k_pages: u64,
    pub v_pages: u64,
    pub page_list: u64,
    pub origins: u64,
    pub q_strides: [i64; 3usize],
    pub k_strides: [i64; 3usize],
    pub v_strides: [i64; 3usize],
    pub q_out_strides: [i64; 3usize],
    pub k_page_strides: [i64; 3usize],
    pub v_page_strides: [i64; 3usize],
    pub rope: RopeParams,
    pub start: [f64; 3usize],
    pub step: [f64; 3usize],
    pub grid: [i32; 3usize],
    pub streams: i32,
    pub q_heads: i32,
    pub kv_heads: i32,
    pub dim: i32,
    pub page_tokens: i32,
    pub max_pages: i32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AppendKvParams"][::core::mem::size_of::<AppendKvParams>() - 840usize];
    ["Alignment of AppendKvParams"][::core::mem::align_of::<AppendKvParams>() - 8usize];
    ["Offset of field: AppendKvParams::q"][::core::mem::offset_of!(AppendKvParams, q) - 0usize];
    ["Offset of field: AppendKvParams::k"][::core::mem::offset_of!(AppendKvParams, k) - 8usize];
    ["Offset of field: AppendKvParams::v"][::core::mem::offset_of!(AppendKvParams, v) - 16usize];
    ["Offset of field: AppendKvParams::q_weight"][::core::mem::offset_of!(AppendKvParams, q_weight) - 24usize];
    ["Offset of field: AppendKvParams::k_weight"][::core::mem::offset_of!(AppendKvParams, k_weight) - 32usize];
    ["Offset of field: AppendKvParams::q_out"][::core::mem::offset_of!(AppendKvParams, q_out) - 40usize];
    ["Offset of field: AppendKvParams::k_pages"][::core::mem::offset_of!(AppendKvParams, k_pages) - 48usize];
    ["Offset of field: AppendKvParams::v_pages"][::core::mem::offset_of!(AppendKvParams, v_pages) - 56usize];
    ["Offset of field: AppendKvParams::page_list"][::core::mem::offset_of!(AppendKvParams, page_list) - 64usize];
    ["Offset of field: AppendKvParams::origins"][::core::mem::offset_of!(AppendKvParams, origins) - 72usize];
    ["Offset of field: AppendKvParams::q_strides"][::core::mem::offset_of!(AppendKvParams, q_strides) - 80usize];
    ["Offset of field: AppendKvParams::k_strides"][::core::mem::offset_of!(AppendKvParams, k_strides) - 104usize];
    ["Offset of field: AppendKvParams::v_strides"][::core::mem::offset_of!(AppendKvParams, v_strides) - 128usize];
    ["Offset of field: AppendKvParams::q_out_strides"]
        [::core::mem::offset_of!(AppendKvParams, q_out_strides) - 152usize];
    ["Offset of field: AppendKvParams::k_page_strides"]
        [::core::mem::offset_of!(AppendKvParams, k_page_strides) - 176usize];
    ["Offset of field: AppendKvParams::v_page_strides"]
        [::core::mem::offset_of!(AppendKvParams, v_page_strides) - 200usize];
    ["Offset of field: AppendKvParams::rope"][::core::mem::offset_of!(AppendKvParams, rope) - 224usize];
    ["Offset of field: AppendKvParams::start"][::core::mem::offset_of!(AppendKvParams, start) - 752usize];
    ["Offset of field: AppendKvParams::step"][::core::mem::offset_of!(AppendKvParams, step) - 776usize];
    ["Offset of field: AppendKvParams::grid"][::core::mem::offset_of!(AppendKvParams, grid) - 800usize];
    ["Offset of field: AppendKvParams::streams"][::core::mem::offset_of!(AppendKvParams, streams) - 812usize];
    ["Offset of field: AppendKvParams::q_heads"][::core::mem::offset_of!(AppendKvParams, q_heads) - 816usize];
    ["Offset of field: AppendKvParams::kv_heads"][::core::mem::offset_of!(AppendKvParams, kv_heads) - 820usize];
    ["Offset of field: AppendKvParams::dim"][::core::mem::offset_of!(AppendKvParams, dim) - 824usize];
    ["Offset of field: AppendKvParams::page_tokens"][::core::mem::offset_of!(AppendKvParams, page_tokens) - 828usize];
    ["Offset of field: AppendKvParams::max_pages"][::core::mem::offset_of!(AppendKvParams, max_pages) - 832usize];
    ["Offset of field: AppendKvParams::eps"][::core::mem::offset_of!(AppendKvParams, eps) - 836usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct MergeTokensParams {
    pub k_pages: u64,
    pub v_pages: u64,
    pub slot_bias: u64,
    pub source: u64,
    pub dest: u64,
    pub k_page_strides: [i64; 3usize],
    pub v_page_strides: [i64; 3usize],
    pub bias_strides: [i64; 2usize],
    pub rope: RopeParams,
    pub grid: [i32; 3usize],
    pub cell: [i32; 3usize],
    pub out: [i32; 3usize],
    pub batch: i32,
    pub kv_heads: i32,
    pub dim: i32,
    pub page_tokens: i32,
    pub source_pages: i32,
    pub dest_pages: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MergeTokensParams"][::core::mem::size_of::<MergeTokensParams>() - 696usize];
    ["Alignment of MergeTokensParams"][::core::mem::align_of::<MergeTokensParams>() - 8usize];
    ["Offset of field: MergeTokensParams::k_pages"][::core::mem::offset_of!(MergeTokensParams, k_pages) - 0usize];
    ["Offset of field: MergeTokensParams::v_pages"][::core::mem::offset_of!(MergeTokensParams, v_pages) - 8usize];
    ["Offset of field: MergeTokensParams::slot_bias"][::core::mem::offset_of!(MergeTokensParams, slot_bias) - 16usize];
    ["Offset of field: MergeTokensParams::source"][::core::mem::offset_of!(MergeTokensParams, source) - 24usize];
    ["Offset of field: MergeTokensParams::dest"][::core::mem::offset_of!(MergeTokensParams, dest) - 32usize];
    ["Offset of field: MergeTokensParams::k_page_strides"]
        [::core::mem::offset_of!(MergeTokensParams, k_page_strides) - 40usize];
    ["Offset of field: MergeTokensParams::v_page_strides"]
        [::core::mem::offset_of!(MergeTokensParams, v_page_strides) - 64usize];
    ["Offset of field: MergeTokensParams::bias_strides"]
        [::core::mem::offset_of!(MergeTokensParams, bias_strides) - 88usize];
    ["Offset of field: MergeTokensParams::rope"][::core::mem::offset_of!(MergeTokensParams, rope) - 104usize];
    ["Offset of field: MergeTokensParams::grid"][::core::mem::offset_of!(MergeTokensParams, grid) - 632usize];
    ["Offset of field: MergeTokensParams::cell"][::core::mem::offset_of!(MergeTokensParams, cell) - 644usize];
    ["Offset of field: MergeTokensParams::out"][::core::mem::offset_of!(MergeTokensParams, out) - 656usize];
    ["Offset of field: MergeTokensParams::batch"][::core::mem::offset_of!(MergeTokensParams, batch) - 668usize];
    ["Offset of field: MergeTokensParams::kv_heads"][::core::mem::offset_of!(MergeTokensParams, kv_heads) - 672usize];
    ["Offset of field: MergeTokensParams::dim"][::core::mem::offset_of!(MergeTokensParams, dim) - 676usize];
    ["Offset of field: MergeTokensParams::page_tokens"]
        [::core::mem::offset_of!(MergeTokensParams, page_tokens) - 680usize];
    ["Offset of field: MergeTokensParams::source_pages"]
        [::core::mem::offset_of!(MergeTokensParams, source_pages) - 684usize];
    ["Offset of field: MergeTokensParams::dest_pages"]
        [::core::mem::offset_of!(MergeTokensParams, dest_pages) - 688usize];
    ["Offset of field: MergeTokensParams::reserved"][::core::mem::offset_of!(MergeTokensParams, reserved) - 692usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct MatchTokensParams {
    pub k_pages: u64,
    pub v_pages: u64,
    pub slot_bias: u64,
    pub source: u64,
    pub dest: u64,
    pub destinations: u64,
    pub turns: u64,
    pub nearest: u64,
    pub similarity: u64,
    pub map: u64,
    pub counts: u64,
    pub members: u64,
    pub starts: u64,
    pub k_page_strides: [i64; 3usize],
    pub v_page_strides: [i64; 3usize],
    pub bias_strides: [i64; 2usize],
    pub rope: RopeParams,
    pub grid: [i32; 3usize],
    pub tokens: i32,
    pub destination_count: i32,
    pub kv_heads: i32,
    pub maps: i32,
    pub dim: i32,
    pub page_tokens: i32,
    pub source_pages: i32,
    pub dest_pages: i32,
    pub top: i32,
    pub threshold: f32,
    pub weighted: i32,
    pub replace: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MatchTokensParams"][::core::mem::size_of::<MatchTokensParams>() - 760usize];
    ["Alignment of MatchTokensParams"][::core::mem::align_of::<MatchTokensParams>() - 8usize];
    ["Offset of field: MatchTokensParams::k_pages"][::core::mem::offset_of!(MatchTokensParams, k_pages) - 0usize];
    ["Offset of field: MatchTokensParams::v_pages"][::core::mem::offset_of!(MatchTokensParams, v_pages) - 8usize];
    ["Offset of field: MatchTokensParams::slot_bias"][::core::mem::offset_of!(MatchTokensParams, slot_bias) - 16usize];
    ["Offset of field: MatchTokensParams::source"][::core::mem::offset_of!(MatchTokensParams, source) - 24usize];
    ["Offset of field: MatchTokensParams::dest"][::core::mem::offset_of!(MatchTokensParams, dest) - 32usize];
    ["Offset of field: MatchTokensParams::destinations"]
        [::core::mem::offset_of!(MatchTokensParams, destinations) - 40usize];
    ["Offset of field: MatchTokensParams::turns"][::core::mem::offset_of!(MatchTokensParams, turns) - 48usize];
    ["Offset of field: MatchTokensParams::nearest"][::core::mem::offset_of!(MatchTokensParams, nearest) - 56usize];
    ["Offset of field: MatchTokensParams::similarity"]
        [::core::mem::offset_of!(MatchTokensParams, similarity) - 64usize];
    ["Offset of field: MatchTokensParams::map"][::core::mem::offset_of!(MatchTokensParams, map) - 72usize];
    ["Offset of field: MatchTokensParams::counts"][::core::mem::offset_of!(MatchTokensParams, counts) - 80usize];
    ["Offset of field: MatchTokensParams::members"][::core::mem::offset_of!(MatchTokensParams, members) - 88usize];
    ["Offset of field: MatchTokensParams::starts"][::core::mem::offset_of!(MatchTokensParams, starts) - 96usize];
    ["Offset of field: MatchTokensParams::k_page_strides"]
        [::core::mem::offset_of!(MatchTokensParams, k_page_strides) - 104usize];
    ["Offset of field: MatchTokensParams::v_page_strides"]
        [::core::mem::offset_of!(MatchTokensParams, v_page_strides) - 128usize];
    ["Offset of field: MatchTokensParams::bias_strides"]
        [::core::mem::offset_of!(MatchTokensParams, bias_strides) - 152usize];
    ["Offset of field: MatchTokensParams::rope"][::core::mem::offset_of!(MatchTokensParams, rope) - 168usize];
    ["Offset of field: MatchTokensParams::grid"][::core::mem::offset_of!(MatchTokensParams, grid) - 696usize];
    ["Offset of field: MatchTokensParams::tokens"][::core::mem::offset_of!(MatchTokensParams, tokens) - 708usize];
    ["Offset of field: MatchTokensParams::destination_count"]
        [::core::mem::offset_of!(MatchTokensParams, destination_count) - 712usize];
    ["Offset of field: MatchTokensParams::kv_heads"][::core::mem::offset_of!(MatchTokensParams, kv_heads) - 716usize];
    ["Offset of field: MatchTokensParams::maps"][::core::mem::offset_of!(MatchTokensParams, maps) - 720usize];
    ["Offset of field: MatchTokensParams::dim"][::core::mem::offset_of!(MatchTokensParams, dim) - 724usize];
    ["Offset of field: MatchTokensParams::page_tokens"]
        [::core::mem::offset_of!(MatchTokensParams, page_tokens) - 728usize];
    ["Offset of field: MatchTokensParams::source_pages"]
        [::core::mem::offset_of!(MatchTokensParams, source_pages) - 732usize];
    ["Offset of field: MatchTokensParams::dest_pages"]
        [::core::mem::offset_of!(MatchTokensParams, dest_pages) - 736usize];
    ["Offset of field: MatchTokensParams::top"][::core::mem::offset_of!(MatchTokensParams, top) - 740usize];
    ["Offset of field: MatchTokensParams::threshold"][::core::mem::offset_of!(MatchTokensParams, threshold) - 744usize];
    ["Offset of field: MatchTokensParams::weighted"][::core::mem::offset_of!(MatchTokensParams, weighted) - 748usize];
    ["Offset of field: MatchTokensParams::replace"][::core::mem::offset_of!(MatchTokensParams, replace) - 752usize];
    ["Offset of field: MatchTokensParams::reserved"][::core::mem::offset_of!(MatchTokensParams, reserved) - 756usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct UnmergeTokensParams {
    pub x: u64,
    pub map: u64,
    pub out: u64,
    pub x_strides: [i64; 3usize],
    pub map_strides: [i64; 2usize],
    pub out_strides: [i64; 3usize],
    pub tokens: i32,
    pub merged: i32,
    pub heads: i32,
    pub maps: i32,
    pub dim: i32,
    pub vectors: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of UnmergeTokensParams"][::core::mem::size_of::<UnmergeTokensParams>() - 112usize];
    ["Alignment of UnmergeTokensParams"][::core::mem::align_of::<UnmergeTokensParams>() - 8usize];
    ["Offset of field: UnmergeTokensParams::x"][::core::mem::offset_of!(UnmergeTokensParams, x) - 0usize];
    ["Offset of field: UnmergeTokensParams::map"][::core::mem::offset_of!(UnmergeTokensParams, map) - 8usize];
    ["Offset of field: UnmergeTokensParams::out"][::core::mem::offset_of!(UnmergeTokensParams, out) - 16usize];
    ["Offset of field: UnmergeTokensParams::x_strides"]
        [::core::mem::offset_of!(UnmergeTokensParams, x_strides) - 24usize];
    ["Offset of field: UnmergeTokensParams::map_strides"]
        [::core::mem::offset_of!(UnmergeTokensParams, map_strides) - 48usize];
    ["Offset of field: UnmergeTokensParams::out_strides"]
        [::core::mem::offset_of!(UnmergeTokensParams, out_strides) - 64usize];
    ["Offset of field: UnmergeTokensParams::tokens"][::core::mem::offset_of!(UnmergeTokensParams, tokens) - 88usize];
    ["Offset of field: UnmergeTokensParams::merged"][::core::mem::offset_of!(UnmergeTokensParams, merged) - 92usize];
    ["Offset of field: UnmergeTokensParams::heads"][::core::mem::offset_of!(UnmergeTokensParams, heads) - 96usize];
    ["Offset of field: UnmergeTokensParams::maps"][::core::mem::offset_of!(UnmergeTokensParams, maps) - 100usize];
    ["Offset of field: UnmergeTokensParams::dim"][::core::mem::offset_of!(UnmergeTokensParams, dim) - 104usize];
    ["Offset of field: UnmergeTokensParams::vectors"][::core::mem::offset_of!(UnmergeTokensParams, vectors) - 108usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct SumTokensParams {
    pub x: u64,
    pub sums: u64,
    pub x_strides: [i64; 3usize],
    pub sum_strides: [i64; 3usize],
    pub tokens: i32,
    pub dim: i32,
    pub chunk_tokens: i32,
    pub vectors: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SumTokensParams"][::core::mem::size_of::<SumTokensParams>() - 80usize];
    ["Alignment of SumTokensParams"][::core::mem::align_of::<SumTokensParams>() - 8usize];
    ["Offset of field: SumTokensParams::x"][::core::mem::offset_of!(SumTokensParams, x) - 0usize];
    ["Offset of field: SumTokensParams::sums"][::core::mem::offset_of!(SumTokensParams, sums) - 8usize];
    ["Offset of field: SumTokensParams::x_strides"][::core::mem::offset_of!(SumTokensParams, x_strides) - 16usize];
    ["Offset of field: SumTokensParams::sum_strides"][::core::mem::offset_of!(SumTokensParams, sum_strides) - 40usize];
    ["Offset of field: SumTokensParams::tokens"][::core::mem::offset_of!(SumTokensParams, tokens) - 64usize];
    ["Offset of field: SumTokensParams::dim"][::core::mem::offset_of!(SumTokensParams, dim) - 68usize];
    ["Offset of field: SumTokensParams::chunk_tokens"]
        [::core::mem::offset_of!(SumTokensParams, chunk_tokens) - 72usize];
    ["Offset of field: SumTokensParams::vectors"][::core::mem::offset_of!(SumTokensParams, vectors) - 76usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct SumKeysParams {
    pub k: u64,
    pub pages: u64,
    pub rows: u64,
    pub sums: u64,
    pub k_strides: [i64; 3usize],
    pub sum_strides: [i64; 2usize],
    pub tokens: i32,
    pub dim: i32,
    pub page_tokens: i32,
    pub block_pages: i32,
    pub row_count: i32,
    pub vectors: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SumKeysParams"][::core::mem::size_of::<SumKeysParams>() - 96usize];
    ["Alignment of SumKeysParams"][::core::mem::align_of::<SumKeysParams>() - 8usize];
    ["Offset of field: SumKeysParams::k"][::core::mem::offset_of!(SumKeysParams, k) - 0usize];
    ["Offset of field: SumKeysParams::pages"][::core::mem::offset_of!(SumKeysParams, pages) - 8usize];
    ["Offset of field: SumKeysParams::rows"][::core::mem::offset_of!(SumKeysParams, rows) - 16usize];
    ["Offset of field: SumKeysParams::sums"][::core::mem::offset_of!(SumKeysParams, sums) - 24usize];
    ["Offset of field: SumKeysParams::k_strides"][::core::mem::offset_of!(SumKeysParams, k_strides) - 32usize];
    ["Offset of field: SumKeysParams::sum_strides"][::core::mem::offset_of!(SumKeysParams, sum_strides) - 56usize];
    ["Offset of field: SumKeysParams::tokens"][::core::mem::offset_of!(SumKeysParams, tokens) - 72usize];
    ["Offset of field: SumKeysParams::dim"][::core::mem::offset_of!(SumKeysParams, dim) - 76usize];
    ["Offset of field: SumKeysParams::page_tokens"][::core::mem::offset_of!(SumKeysParams, page_tokens) - 80usize];
    ["Offset of field: SumKeysParams::block_pages"][::core::mem::offset_of!(SumKeysParams, block_pages) - 84usize];
    ["Offset of field: SumKeysParams::row_count"][::core::mem::offset_of!(SumKeysParams, row_count) - 88usize];
    ["Offset of field: SumKeysParams::vectors"][::core::mem::offset_of!(SumKeysParams, vectors) - 92usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct ScoreBlocksParams {
    pub query_sums: u64,
    pub key_sums: u64,
    pub candidates: u64,
    pub counts: u64,
    pub scores: u64,
    pub query_sum_strides: [i64; 3usize],
    pub key_sum_strides: [i64; 2usize],
    pub candidate_stride: i64,
    pub score_stride: i64,
    pub chunks: i32,
    pub q_heads: i32,
    pub kv_heads: i32,
    pub dim: i32,
    pub slots: i32,
    pub max_candidates: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ScoreBlocksParams"][::core::mem::size_of::<ScoreBlocksParams>() - 120usize];
    ["Alignment of ScoreBlocksParams"][::core::mem::align_of::<ScoreBlocksParams>() - 8usize];
    ["Offset of field: ScoreBlocksParams::query_sums"][::core::mem::offset_of!(ScoreBlocksParams, query_sums) - 0usize];
    ["Offset of field: ScoreBlocksParams::key_sums"][::core::mem::offset_of!(ScoreBlocksParams, key_sums) - 8usize];
    ["Offset of field: ScoreBlocksParams::candidates"]
        [::core::mem::offset_of!(ScoreBlocksParams, candidates) - 16usize];
    ["Offset of field: ScoreBlocksParams::counts"][::core::mem::offset_of!(ScoreBlocksParams, counts) - 24usize];
    ["Offset of field: ScoreBlocksParams::scores"][::core::mem::offset_of!(ScoreBlocksParams, scores) - 32usize];
    ["Offset of field: ScoreBlocksParams::query_sum_strides"]
        [::core::mem::offset_of!(ScoreBlocksParams, query_sum_strides) - 40usize];
    ["Offset of field: ScoreBlocksParams::key_sum_strides"]
        [::core::mem::offset_of!(ScoreBlocksParams, key_sum_strides) - 64usize];
    ["Offset of field: ScoreBlocksParams::candidate_stride"]
        [::core::mem::offset_of!(ScoreBlocksParams, candidate_stride) - 80usize];
    ["Offset of field: ScoreBlocksParams::score_stride"]
        [::core::mem::offset_of!(ScoreBlocksParams, score_stride) - 88usize];
    ["Offset of field: ScoreBlocksParams::chunks"][::core::mem::offset_of!(ScoreBlocksParams, chunks) - 96usize];
    ["Offset of field: ScoreBlocksParams::q_heads"][::core::mem::offset_of!(ScoreBlocksParams, q_heads) - 100usize];
    ["Offset of field: ScoreBlocksParams::kv_heads"][::core::mem::offset_of!(ScoreBlocksParams, kv_heads) - 104usize];
    ["Offset of field: ScoreBlocksParams::dim"][::core::mem::offset_of!(ScoreBlocksParams, dim) - 108usize];
    ["Offset of field: ScoreBlocksParams::slots"][::core::mem::offset_of!(ScoreBlocksParams, slots) - 112usize];
    ["Offset of field: ScoreBlocksParams::max_candidates"]
        [::core::mem::offset_of!(ScoreBlocksParams, max_candidates) - 116usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct SelectBlocksParams {
    pub scores: u64,
    pub candidates: u64,
    pub counts: u64,
    pub slot_pages: u64,
    pub draft_pages: u64,
    pub draft_segments: u64,
    pub draft_counts: u64,
    pub draft_prefix: u64,
    pub chosen: u64,
    pub pages: u64,
    pub segments: u64,
    pub segment_counts: u64,
    pub score_stride: i64,
    pub candidate_stride: i64,
    pub chosen_stride: i64,
    pub selected: i32,
    pub max_candidates: i32,
    pub slots: i32,
    pub slot_max_pages: i32,
    pub block_pages: i32,
    pub block_tokens: i32,
    pub page_tokens: i32,
    pub draft_max_pages: i32,
    pub draft_max_segments: i32,
    pub max_pages: i32,
    pub max_segments: i32,
    pub slot_bias: i32,
    pub key_bias: f32,
    pub block_frames: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SelectBlocksParams"][::core::mem::size_of::<SelectBlocksParams>() - 176usize];
    ["Alignment of SelectBlocksParams"][::core::mem::align_of::<SelectBlocksParams>() - 8usize];
    ["Offset of field: SelectBlocksParams::scores"][::core::mem::offset_of!(SelectBlocksParams, scores) - 0usize];
    ["Offset of field: SelectBlocksParams::candidates"]
        [::core::mem::offset_of!(SelectBlocksParams, candidates) - 8usize];
    ["Offset of field: SelectBlocksParams::counts"][::core::mem::offset_of!(SelectBlocksParams, counts) - 16usize];
    ["Offset of field: SelectBlocksParams::slot_pages"]
        [::core::mem::offset_of!(SelectBlocksParams, slot_pages) - 24usize];
    ["Offset of field: SelectBlocksParams::draft_pages"]
        [::core::mem::offset_of!(SelectBlocksParams, draft_pages) - 32usize];
    ["Offset of field: SelectBlocksParams::draft_segments"]
        [::core::mem::offset_of!(SelectBlocksParams, draft_segments) - 40usize];
    ["Offset of field: SelectBlocksParams::draft_counts"]
        [::core::mem::offset_of!(SelectBlocksParams, draft_counts) - 48usize];
    ["Offset of field: SelectBlocksParams::draft_prefix"]
        [::core::mem::offset_of!(SelectBlocksParams, draft_prefix) - 56usize];
    ["Offset of field: SelectBlocksParams::chosen"][::core::mem::offset_of!(SelectBlocksParams, chosen) - 64usize];
    ["Offset of field: SelectBlocksParams::pages"][::core::mem::offset_of!(SelectBlocksParams, pages) - 72usize];
    ["Offset of field: SelectBlocksParams::segments"][::core::mem::offset_of!(SelectBlocksParams, segments) - 80usize];
    ["Offset of field: SelectBlocksParams::segment_counts"]
        [::core::mem::offset_of!(SelectBlocksParams, segment_counts) - 88usize];
    ["Offset of field: SelectBlocksParams::score_stride"]
        [::core::mem::offset_of!(SelectBlocksParams, score_stride) - 96usize];
    ["Offset of field: SelectBlocksParams::candidate_stride"]
        [::core::mem::offset_of!(SelectBlocksParams, candidate_stride) - 104usize];
    ["Offset of field: SelectBlocksParams::chosen_stride"]
        [::core::mem::offset_of!(SelectBlocksParams, chosen_stride) - 112usize];
    ["Offset of field: SelectBlocksParams::selected"][::core::mem::offset_of!(SelectBlocksParams, selected) - 120usize];
    ["Offset of field: SelectBlocksParams::max_candidates"]
        [::core::mem::offset_of!(SelectBlocksParams, max_candidates) - 124usize];
    ["Offset of field: SelectBlocksParams::slots"][::core::mem::offset_of!(SelectBlocksParams, slots) - 128usize];
    ["Offset of field: SelectBlocksParams::slot_max_pages"]
        [::core::mem::offset_of!(SelectBlocksParams, slot_max_pages) - 132usize];
    ["Offset of field: SelectBlocksParams::block_pages"]
        [::core::mem::offset_of!(SelectBlocksParams, block_pages) - 136usize];
    ["Offset of field: SelectBlocksParams::block_tokens"]
        [::core::mem::offset_of!(SelectBlocksParams, block_tokens) - 140usize];
    ["Offset of field: SelectBlocksParams::page_tokens"]
        [::core::mem::offset_of!(SelectBlocksParams, page_tokens) - 144usize];
    ["Offset of field: SelectBlocksParams::draft_max_pages"]
        [::core::mem::offset_of!(SelectBlocksParams, draft_max_pages) - 148usize];
    ["Offset of field: SelectBlocksParams::draft_max_segments"]
        [::core::mem::offset_of!(SelectBlocksParams, draft_max_segments) - 152usize];
    ["Offset of field: SelectBlocksParams::max_pages"]
        [::core::mem::offset_of!(SelectBlocksParams, max_pages) - 156usize];
    ["Offset of field: SelectBlocksParams::max_segments"]
        [::core::mem::offset_of!(SelectBlocksParams, max_segments) - 160usize];
    ["Offset of field: SelectBlocksParams::slot_bias"]
        [::core::mem::offset_of!(SelectBlocksParams, slot_bias) - 164usize];
    ["Offset of field: SelectBlocksParams::key_bias"][::core::mem::offset_of!(SelectBlocksParams, key_bias) - 168usize];
    ["Offset of field: SelectBlocksParams::block_frames"]
        [::core::mem::offset_of!(SelectBlocksParams, block_frames) - 172usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct DenoiseStepParams {
    pub terms: [u64; 8usize],
    pub outputs: [u64; 4usize],
    pub coefficients: u64,
    pub term_strides: [[i64; 2usize]; 8usize],
    pub output_strides: [[i64; 2usize]; 4usize],
    pub term_dtypes: [i32; 8usize],
    pub output_dtypes: [i32; 4usize],
    pub outer: i64,
    pub frames: i64,
    pub inner: i64,
    pub seed: u64,
    pub offset: u64,
    pub noise_base: u64,
    pub guidance: u64,
    pub sample_rows: i64,
    pub term_count: i32,
    pub output_count: i32,
    pub noise: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of DenoiseStepParams"][::core::mem::size_of::<DenoiseStepParams>() - 424usize];
    ["Alignment of DenoiseStepParams"][::core::mem::align_of::<DenoiseStepParams>() - 8usize];
    ["Offset of field: DenoiseStepParams::terms"][::core::mem::offset_of!(DenoiseStepParams, terms) - 0usize];
    ["Offset of field: DenoiseStepParams::outputs"][::core::mem::offset_of!(DenoiseStepParams, outputs) - 64usize];
    ["Offset of field: DenoiseStepParams::coefficients"]
        [::core::mem::offset_of!(DenoiseStepParams, coefficients) - 96usize];
    ["Offset of field: DenoiseStepParams::term_strides"]
        [::core::mem::offset_of!(DenoiseStepParams, term_strides) - 104usize];
    ["Offset of field: DenoiseStepParams::output_strides"]
        [::core::mem::offset_of!(DenoiseStepParams, output_strides) - 232usize];
    ["Offset of field: DenoiseStepParams::term_dtypes"]
        [::core::mem::offset_of!(DenoiseStepParams, term_dtypes) - 296usize];
    ["Offset of field: DenoiseStepParams::output_dtypes"]
        [::core::mem::offset_of!(DenoiseStepParams, output_dtypes) - 328usize];
    ["Offset of field: DenoiseStepParams::outer"][::core::mem::offset_of!(DenoiseStepParams, outer) - 344usize];
    ["Offset of field: DenoiseStepParams::frames"][::core::mem::offset_of!(DenoiseStepParams, frames) - 352usize];
    ["Offset of field: DenoiseStepParams::inner"][::core::mem::offset_of!(DenoiseStepParams, inner) - 360usize];
    ["Offset of field: DenoiseStepParams::seed"][::core::mem::offset_of!(DenoiseStepParams, seed) - 368usize];
    ["Offset of field: DenoiseStepParams::offset"][::core::mem::offset_of!(DenoiseStepParams, offset) - 376usize];
    ["Offset of field: DenoiseStepParams::noise_base"]
        [::core::mem::offset_of!(DenoiseStepParams, noise_base) - 384usize];
    ["Offset of field: DenoiseStepParams::guidance"][::core::mem::offset_of!(DenoiseStepParams, guidance) - 392usize];
    ["Offset of field: DenoiseStepParams::sample_rows"]
        [::core::mem::offset_of!(DenoiseStepParams, sample_rows) - 400usize];
    ["Offset of field: DenoiseStepParams::term_count"]
        [::core::mem::offset_of!(DenoiseStepParams, term_count) - 408usize];
    ["Offset of field: DenoiseStepParams::output_count"]
        [::core::mem::offset_of!(DenoiseStepParams, output_count) - 412usize];
    ["Offset of field: DenoiseStepParams::noise"][::core::mem::offset_of!(DenoiseStepParams, noise) - 416usize];
    ["Offset of field: DenoiseStepParams::reserved"][::core::mem::offset_of!(DenoiseStepParams, reserved) - 420usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct GuidanceParams {
    pub cond: u64,
    pub uncond: u64,
    pub partial: u64,
    pub weights: u64,
    pub cond_strides: [i64; 2usize],
    pub uncond_strides: [i64; 2usize],
    pub frames: i64,
    pub inner: i64,
    pub sample_rows: i64,
    pub parts: i64,
    pub scale: f64,
    pub rescale: f64,
    pub cond_dtype: i32,
    pub uncond_dtype: i32,
    pub zero_star: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GuidanceParams"][::core::mem::size_of::<GuidanceParams>() - 128usize];
    ["Alignment of GuidanceParams"][::core::mem::align_of::<GuidanceParams>() - 8usize];
    ["Offset of field: GuidanceParams::cond"][::core::mem::offset_of!(GuidanceParams, cond) - 0usize];
    ["Offset of field: GuidanceParams::uncond"][::core::mem::offset_of!(GuidanceParams, uncond) - 8usize];
    ["Offset of field: GuidanceParams::partial"][::core::mem::offset_of!(GuidanceParams, partial) - 16usize];
    ["Offset of field: GuidanceParams::weights"][::core::mem::offset_of!(GuidanceParams, weights) - 24usize];
    ["Offset of field: GuidanceParams::cond_strides"][::core::mem::offset_of!(GuidanceParams, cond_strides) - 32usize];
    ["Offset of field: GuidanceParams::uncond_strides"]
        [::core::mem::offset_of!(GuidanceParams, uncond_strides) - 48usize];
    ["Offset of field: GuidanceParams::frames"][::core::mem::offset_of!(GuidanceParams, frames) - 64usize];
    ["Offset of field: GuidanceParams::inner"][::core::mem::offset_of!(GuidanceParams, inner) - 72usize];
    ["Offset of field: GuidanceParams::sample_rows"][::core::mem::offset_of!(GuidanceParams, sample_rows) - 80usize];
    ["Offset of field: GuidanceParams::parts"][::core::mem::offset_of!(GuidanceParams, parts) - 88usize];
    ["Offset of field: GuidanceParams::scale"][::core::mem::offset_of!(GuidanceParams, scale) - 96usize];
    ["Offset of field: GuidanceParams::rescale"][::core::mem::offset_of!(GuidanceParams, rescale) - 104usize];
    ["Offset of field: GuidanceParams::cond_dtype"][::core::mem::offset_of!(GuidanceParams, cond_dtype) - 112usize];
    ["Offset of field: GuidanceParams::uncond_dtype"][::core::mem::offset_of!(GuidanceParams, uncond_dtype) - 116usize];
    ["Offset of field: GuidanceParams::zero_star"][::core::mem::offset_of!(GuidanceParams, zero_star) - 120usize];
    ["Offset of field: GuidanceParams::reserved"][::core::mem::offset_of!(GuidanceParams, reserved) - 124usize];
};
