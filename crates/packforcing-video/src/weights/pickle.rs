//! Python's pickles as data: what would be called is told by name, and nothing is carried out.
//!
//! Protocols 2 to 5, the opcodes of Python's `pickletools`. Values lie in one list and name each other by their places,
//! so that a file that repeats or nests them without end takes neither memory nor stack.

use std::collections::HashMap;

/// A value, by its place among all values of a pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id(u32);

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Bytes, and integers of more than 64 bits: nothing here asks for them.
    Opaque,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function, `module.name`.
    Global(String),
    /// What a class or a function would make of these.
    Call {
        what: Id,
        arguments: Id,
    },
    /// Something that lies outside of the pickle.
    Outside(Id),
}

/// What a pickle says.
#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// Reads a pickle to its end.
    pub fn read(bytes: &[u8]) -> Result<Pickle, String> {
        let mut machine = Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            memoized: 0,
        };
        let root = machine
            .run()
            .map_err(|e| format!("its pickle is damaged: {e} at byte {}", machine.at))?;
        Ok(Pickle {
            values: machine.values,
            root,
        })
    }

    pub fn root(&self) -> Id {
        self.root
    }

    pub fn value(&self, id: Id) -> &Value {
        &self.values[id.0 as usize]
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.value(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number from 0.
    pub fn number(&self, id: Id) -> Option<usize> {
        match self.value(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.value(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub fn global(&self, id: Id) -> Option<&str> {
        match self.value(id) {
            Value::Global(name) => Some(name),
            _ => None,
        }
    }

    /// What would be called, and with what.
    pub fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        match self.value(id) {
            Value::Call { what, arguments } => Some((self.global(*what)?, self.tuple(*arguments)?)),
            _ => None,
        }
    }
}

/// Classes of dictionaries whose items are all that counts.
const DICTIONARIES: [&str; 2] = ["collections.OrderedDict", "collections.defaultdict"];

struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    memoized: u32,
}

type Step<T> = Result<T, String>;

impl<'b> Machine<'b> {
    fn run(&mut self) -> Step<Id> {
        loop {
            let code = self.byte()?;
            match code {
                // PROTO, FRAME: what they say is not needed.
                0x80 => self.take(1).map(drop)?,
                0x95 => self.take(8).map(drop)?,
                b'.' => return self.pop(),
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(number.into()))?;
                }
                b'K' => {
                    let number = self.byte()?;
                    self.push(Value::Int(number.into()))?;
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(number.into()))?;
                }
                0x8a => {
                    let length = self.byte()?.into();
                    self.long(length)?;
                }
                0x8b => {
                    let length = self.length(4)?;
                    self.long(length)?;
                }
                b'G' => {
                    let number = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(number))?;
                }
                // Texts: BINUNICODE, SHORT_BINUNICODE, BINUNICODE8.
                b'X' => self.text(4)?,
                0x8c => self.text(1)?,
                0x8d => self.text(8)?,
                // Bytes and the strings of Python 2, which names may be in: BINBYTES and its like, BINSTRING, SHORT_BINSTRING.
                b'B' => self.opaque(4)?,
                b'C' => self.opaque(1)?,
                0x8e | 0x96 => self.opaque(8)?,
                b'T' => self.text(4)?,
                b'U' => self.text(1)?,
                b'(' => self.marks.push(self.stack.len()),
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b't' => {
                    let items = self.since_mark()?;
                    self.push(Value::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let items = self.pop_many(usize::from(code - 0x84))?;
                    self.push(Value::Tuple(items))?;
                }
                b']' | 0x8f => self.push(Value::List(Vec::new()))?,
                b'l' | 0x91 => {
                    let items = self.since_mark()?;
                    self.push(Value::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.since_mark()?;
                    self.append(items)?;
                }
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b'd' => {
                    let items = pairs(self.since_mark()?)?;
                    self.push(Value::Dict(items))?;
                }
                b's' => {
                    let items = pairs(self.pop_many(2)?)?;
                    self.insert(items)?;
                }
                b'u' => {
                    let items = pairs(self.since_mark()?)?;
                    self.insert(items)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global(format!("{module}.{name}")))?;
                }
                0x93 => {
                    let both = self.pop_many(2)?;
                    let named: Option<Vec<&str>> = both.iter().map(|id| self.text_of(*id)).collect();
                    let name = named.ok_or("a class without a name")?.join(".");
                    self.push(Value::Global(name))?;
                }
                // REDUCE, NEWOBJ, NEWOBJ_EX.
                b'R' | 0x81 => self.call()?,
                0x92 => {
                    self.pop()?;
                    self.call()?;
                }
                // BUILD: what an object would be told of itself.
                b'b' => self.pop().map(drop)?,
                b'Q' => {
                    let what = self.pop()?;
                    self.push(Value::Outside(what))?;
                }
                b'0' => self.pop().map(drop)?,
                b'1' => self.since_mark().map(drop)?,
                b'2' => {
                    let top = *self.stack.last().ok_or("an empty stack")?;
                    self.stack.push(top);
                }
                b'q' => {
                    let place = self.byte()?.into();
                    self.remember(place)?;
                }
                b'r' => {
                    let place = u32::from_le_bytes(self.array()?);
                    self.remember(place)?;
                }
                0x94 => {
                    self.remember(self.memoized)?;
                    self.memoized += 1;
                }
                b'h' => {
                    let place = self.byte()?.into();
                    self.recall(place)?;
                }
                b'j' => {
                    let place = u32::from_le_bytes(self.array()?);
                    self.recall(place)?;
                }
                other => return Err(format!("an instruction {other:#04x} that is not known")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Step<&'b [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("it ends too early")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// A length of so many bytes.
    fn length(&mut self, bytes: usize) -> Step<usize> {
        let mut wide = [0; 8];
        wide[..bytes].copy_from_slice(self.take(bytes)?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| "a length that is none".into())
    }

    fn line(&mut self) -> Step<&'b str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("it ends too early")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a name that is no text".into())
    }

    fn push(&mut self, value: Value) -> Step<()> {
        let id = u32::try_from(self.values.len()).map_err(|_| "too many values")?;
        self.values.push(value);
        self.stack.push(Id(id));
        Ok(())
    }

    fn text(&mut self, length_bytes: usize) -> Step<()> {
        let length = self.length(length_bytes)?;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Value::Text(text))
    }

    fn opaque(&mut self, length_bytes: usize) -> Step<()> {
        let length = self.length(length_bytes)?;
        self.take(length)?;
        self.push(Value::Opaque)
    }

    /// An integer of so many bytes, the last of which has the sign.
    fn long(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?;
        if length > 8 {
            return self.push(Value::Opaque);
        }
        let negative = bytes.last().is_some_and(|last| *last >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    /// Never below a mark that is open.
    fn pop(&mut self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(|| "an empty stack".into()),
            false => Err("an empty stack".into()),
        }
    }

    fn pop_many(&mut self, count: usize) -> Step<Vec<Id>> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Step<Vec<Id>>>()?;
        items.reverse();
        Ok(items)
    }

    fn since_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("an end without a beginning")?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Step<&mut Value> {
        let top = *self.stack.last().ok_or("an empty stack")?;
        Ok(&mut self.values[top.0 as usize])
    }

    /// Items of a list; what another object would do with them is not known.
    fn append(&mut self, more: Vec<Id>) -> Step<()> {
        if let Value::List(items) = self.top()? {
            items.extend(more);
        }
        Ok(())
    }

    fn insert(&mut self, more: Vec<(Id, Id)>) -> Step<()> {
        if let Value::Dict(items) = self.top()? {
            items.extend(more);
        }
        Ok(())
    }

    fn text_of(&self, id: Id) -> Option<&str> {
        match &self.values[id.0 as usize] {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn call(&mut self) -> Step<()> {
        let both = self.pop_many(2)?;
        let (what, arguments) = (both[0], both[1]);
        let dictionary = match &self.values[what.0 as usize] {
            Value::Global(name) => DICTIONARIES.contains(&name.as_str()),
            _ => false,
        };
        self.push(match dictionary {
            true => Value::Dict(Vec::new()),
            false => Value::Call { what, arguments },
        })
    }

    fn remember(&mut self, place: u32) -> Step<()> {
        let top = *self.stack.last().ok_or("an empty stack")?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Step<()> {
        let id = *self.memo.get(&place).ok_or("something that was not kept")?;
        self.stack.push(id);
        Ok(())
    }
}

fn pairs(items: Vec<Id>) -> Step<Vec<(Id, Id)>> {
    match items.len().is_multiple_of(2) {
        true => Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()),
        false => Err("a key without a value".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_python_wrote() {
        // pickle.dumps({"a": [1, -2, 300, 2.5, None, True], "b": ("x", 2**40)}, protocol) for 2 and 4.
        let two = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01G@\x04\x00\x00\x00\x00\x00\x00N\x88\
                    eX\x01\x00\x00\x00bq\x03X\x01\x00\x00\x00xq\x04\x8a\x06\x00\x00\x00\x00\x00\x01\x86q\x05u.";
        let four = b"\x80\x04\x954\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xffM,\x01G@\x04\x00\x00\
                     \x00\x00\x00\x00N\x88e\x8c\x01b\x94\x8c\x01x\x94\x8a\x06\x00\x00\x00\x00\x00\x01\x86\x94u.";
        for bytes in [&two[..], &four[..]] {
            let pickle = Pickle::read(bytes).expect("a pickle");
            let Value::Dict(items) = pickle.value(pickle.root()) else {
                panic!("{:?}", pickle.value(pickle.root()))
            };
            let keys: Vec<&str> = items.iter().filter_map(|(key, _)| pickle.text(*key)).collect();
            assert_eq!(keys, ["a", "b"]);
            let Value::List(list) = pickle.value(items[0].1) else {
                panic!("{:?}", pickle.value(items[0].1))
            };
            let list: Vec<&Value> = list.iter().map(|id| pickle.value(*id)).collect();
            let expected = [
                Value::Int(1),
                Value::Int(-2),
                Value::Int(300),
                Value::Float(2.5),
                Value::None,
                Value::Bool(true),
            ];
            assert_eq!(list, expected.iter().collect::<Vec<_>>());
            let both = pickle.tuple(items[1].1).expect("a tuple");
            assert_eq!(
                (pickle.text(both[0]), pickle.number(both[1])),
                (Some("x"), Some(1 << 40))
            );
        }
    }

    #[test]
    fn nothing_is_carried_out_and_nothing_grows() {
        // A call of os.system.
        let call = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.";
        let pickle = Pickle::read(call).expect("a pickle");
        let (what, with) = pickle.call(pickle.root()).expect("a call");
        assert_eq!((what, with.len(), pickle.text(with[0])), ("os.system", 1, Some("ls")));
        // A pair of the same pair, sixty times over: 2^60 values for who copies them.
        let bomb = [&b"\x80\x02N"[..], &b"q\x00h\x00\x86".repeat(60), b"."].concat();
        assert_eq!(Pickle::read(&bomb).expect("a pickle").values.len(), 61);
        // Tuples in tuples, a million deep.
        let deep = [&b"\x80\x02N"[..], &vec![0x85; 1_000_000], b"."].concat();
        drop(Pickle::read(&deep).expect("a pickle"));
        // A list that holds itself.
        let ring = b"\x80\x02]q\x00h\x00a.";
        assert!(Pickle::read(ring).is_ok());
    }

    #[test]
    fn what_is_damaged_is_told() {
        let whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.";
        for end in 0..whole.len() {
            assert!(Pickle::read(&whole[..end]).is_err(), "{end}");
        }
        for (bytes, told) in [
            (&b"\x80\x02t."[..], "an end without a beginning"),
            (b"\x80\x02(K\x01K\x02K\x03d.", "a key without a value"),
            (b"\x80\x02R.", "an empty stack"),
            (b"\x80\x02N(0.", "an empty stack"),
            (b"\x80\x02h\x07.", "something that was not kept"),
            (b"\x80\x02X\xff\xff\xff\xffabc.", "it ends too early"),
            (b"\x80\x05\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.", "it ends too early"),
            (b"(dp0\n.", "0x70"),
        ] {
            let said = Pickle::read(bytes).err().unwrap_or_default();
            assert!(said.contains(told), "{said}");
        }
    }
}
