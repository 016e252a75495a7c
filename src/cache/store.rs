//! The device memory that the streams of a pool share.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::paging::{KvPages, KvPagesMut, PageLists};
use crate::tensor::Tensor;

use super::config::PackConfig;

/// Keys and values of every layer, and what is known of every compressed block.
pub(crate) struct Store {
    pub kv: Kv,
    /// Sums of a compressed block's keys. f32 [layers, slots, kv_heads, dim]
    pub key_sums: Tensor,
    /// Pages of every compressed block.
    pub slot_pages: PageLists,
}

/// Keys and values of every layer.
pub(crate) struct Kv {
    /// [layers, pages, kv_heads, page_tokens, dim]
    k: Tensor,
    v: Tensor,
    /// Log sizes of merged tokens, of every layer or one for all. [1 or layers, pages, kv_heads, page_tokens]
    slot_bias: Option<Tensor>,
}

impl Store {
    pub fn new(device: &Device, config: &PackConfig) -> Result<Store> {
        let pages = config.pool_pages().0;
        let heads = config.heads;
        let slots = config.slots_per_stream() * config.streams;
        let kv = [config.layers, pages, heads.kv, config.page_tokens, heads.dim];
        let slot_bias = config
            .slot_bias()
            .then(|| Tensor::zeros(device, DType::F32, &[config.bias_layers(), kv[1], kv[2], kv[3]]))
            .transpose()?;
        Ok(Store {
            kv: Kv {
                k: Tensor::zeros(device, config.dtype, &kv)?,
                v: Tensor::zeros(device, config.dtype, &kv)?,
                slot_bias,
            },
            key_sums: Tensor::zeros(device, DType::F32, &[config.layers, slots, heads.kv, heads.dim])?,
            slot_pages: PageLists::new(device, pages, slots, config.mid_pages().0)?,
        })
    }

    /// Bytes of device memory that it has reserved.
    pub fn bytes(&self) -> usize {
        let tensors = [
            Some(&self.kv.k),
            Some(&self.kv.v),
            self.kv.slot_bias.as_ref(),
            Some(&self.key_sums),
        ];
        let tensors = tensors.into_iter().flatten().map(Tensor::bytes).sum::<usize>();
        tensors + self.slot_pages.bytes()
    }
}

impl Kv {
    /// One layer's pages, for reading.
    pub fn layer(&self, layer: usize) -> Result<KvPages<'_>> {
        Ok(KvPages {
            k: self.k.view().select(0, layer)?,
            v: self.v.view().select(0, layer)?,
            slot_bias: match &self.slot_bias {
                Some(bias) => Some(bias.view().select(0, layer.min(bias.view().shape()[0] - 1))?),
                None => None,
            },
        })
    }

    /// One layer's pages, for writing.
    pub fn layer_mut(&mut self, layer: usize) -> Result<KvPagesMut<'_>> {
        Ok(KvPagesMut {
            k: self.k.view_mut().select(0, layer)?,
            v: self.v.view_mut().select(0, layer)?,
            slot_bias: match &mut self.slot_bias {
                Some(bias) => {
                    let own = layer.min(bias.view().shape()[0] - 1);
                    Some(bias.view_mut().select(0, own)?)
                }
                None => None,
            },
        })
    }
}
