//! A prompt on its way to the text encoder: cleaned, and cut into tokens by the encoder's own tokenizer.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::weights::{begin_of, instead};

/// The mark that every prompt ends with, in all of T5's vocabularies.
const END: u32 = 1;

/// A prompt as Wan's code cleans it, but for ftfy: HTML entities are undone twice, white space of any kind and length is
/// one space, and none is left at the ends.
///
/// What ftfy would mend (text that was decoded wrongly, curly quotes, ligatures, full-width letters, control characters) stays
/// as it is.
///
/// ```
/// use packforcing_video::clean_prompt;
///
/// assert_eq!(clean_prompt("  Tom &amp;amp; Jerry\u{3000}\n run "), "Tom & Jerry run");
/// ```
pub fn clean_prompt(text: &str) -> String {
    let once = htmlize::unescape(text);
    let twice = htmlize::unescape(once.as_ref());
    let words: Vec<&str> = twice.split(is_space).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// As Python's `\s`: Unicode's white space and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The tokenizer of a text encoder: a `tokenizer.json`, which says itself how text becomes tokens.
pub struct PromptTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
}

impl PromptTokenizer {
    /// Opens a `tokenizer.json`, or the one in a folder.
    ///
    /// # Errors
    ///
    /// A file that is not there or is none; a `spiece.model`, which is another format of the same.
    pub fn open(path: impl AsRef<Path>) -> Result<PromptTokenizer> {
        let mut path = path.as_ref().to_path_buf();
        if path.is_dir() {
            path.push("tokenizer.json");
        }
        let refuse = |reason: String| Error::Checkpoint {
            file: path.clone(),
            reason,
        };
        if path.extension().is_some_and(|end| end == "model") {
            return Err(refuse(
                "a sentencepiece model: the tokenizer.json beside it holds the same, and is what is read".into(),
            ));
        }
        let begin = begin_of(&path).map_err(refuse)?;
        if !begin.trim_ascii_start().starts_with(b"{") {
            let what = instead(&begin).unwrap_or("it is no JSON");
            return Err(refuse(format!("not a tokenizer.json: {what}")));
        }
        let bytes = std::fs::read(&path).map_err(|e| refuse(e.to_string()))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| refuse(format!("not a tokenizer.json: {e}")))?;
        // Both are done here, and a file that asks for them would have them twice.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| refuse(format!("its truncation cannot be left out: {e}")))?;
        Ok(PromptTokenizer { path, tokenizer })
    }

    /// Tokens of a prompt that was cleaned, the end mark among them: at most `most`, which cuts the end off but for the mark.
    ///
    /// # Errors
    ///
    /// What the tokenizer reports.
    pub fn encode(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let encoded = self.tokenizer.encode(text, true).map_err(|e| Error::Checkpoint {
            file: self.path.clone(),
            reason: format!("no tokens of this prompt: {e}"),
        })?;
        let mut tokens = encoded.get_ids().to_vec();
        // Files differ in whether the mark is set by their own template.
        if tokens.last() != Some(&END) {
            tokens.push(END);
        }
        if tokens.len() > most {
            tokens.truncate(most);
            if let Some(last) = tokens.last_mut() {
                *last = END;
            }
        }
        Ok(tokens)
    }
}
