//! The driver's functions, by their C signatures. Handles are numbers in a pointer's clothes; only what the manual says is
//! read or written through a caller's pointer.

#![allow(non_snake_case, reason = "the driver's names")]
#![allow(clippy::missing_safety_doc, reason = "the driver's manual has the contracts")]

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use crate::card::{Failure, Settings};
use crate::codes::{Code, Result};
use crate::driver::{Context, Driver, Event, Function, Guard, LEGACY, Module, Recorded, World};
use crate::images::{self, Image, Loaded};
use crate::memory::State;
use crate::simt::{self, Launch, Params};
use crate::tensor_map::Tiled;
use crate::work::{Action, Exec, Handle, Mode, Source};

static DRIVER: OnceLock<Driver> = OnceLock::new();

thread_local! {
    static CURRENT: Cell<Handle> = const { Cell::new(0) };
    /// What this thread asked to fail, with the calls that are still to come before.
    static FAILURES: RefCell<Vec<Failure>> = const { RefCell::new(Vec::new()) };
}

/// Called by the library's own constructor: the driver version and the table of images.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_double_setup(driver: u32, toolkit: u32, images: *const c_char) {
    // SAFETY: a text that ends in a zero.
    let text = unsafe { CStr::from_ptr(images) }.to_string_lossy();
    let settings = Settings {
        driver,
        toolkit,
        ..Settings::from_env()
    };
    DRIVER.get_or_init(|| Driver::new(settings, Image::table(&text)));
}

pub fn driver() -> &'static Driver {
    DRIVER.get_or_init(|| Driver::new(Settings::from_env(), Vec::new()))
}

/// The mark of a double: a real driver has no such function. The version of this interface.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_double_version() -> u32 {
    1
}

/// From now on, the Nth call of this thread to a function (from 1) fails with a code; N of 0 takes all of it back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_double_fail(call: *const c_char, number: u64, code: u32) {
    // SAFETY: a text that ends in a zero.
    let call = unsafe { CStr::from_ptr(call) }.to_string_lossy().into_owned();
    FAILURES.with_borrow_mut(|all| match number {
        0 => all.clear(),
        _ => all.push(Failure { call, number, code }),
    });
}

/// Faults that were found so far, and allocations that contexts took with them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_double_found(faults: *mut u64, leaks: *mut u64) {
    let world = driver().lock();
    // SAFETY: the caller's pointers, or null.
    unsafe {
        write(faults, world.reports.len() as u64);
        write(leaks, world.leaked as u64);
    }
}

/// # Safety
///
/// A place for the value, or null.
unsafe fn write<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: the caller's promise.
        unsafe { to.write(value) };
    }
}

fn required<T>(pointer: *const T) -> Result {
    match pointer.is_null() {
        true => Err(Code::INVALID_VALUE),
        false => Ok(()),
    }
}

/// Whether this call is one that was told to fail.
fn told_to_fail(world: &mut World, name: &str) -> Result {
    let calls = world.calls.entry(name.to_string()).or_default();
    *calls += 1;
    let calls = *calls;
    let by_variable = world
        .settings
        .failures
        .iter()
        .find(|f| f.call == name && f.number == calls);
    let by_thread = FAILURES.with_borrow_mut(|all| {
        let due = all.iter_mut().filter(|f| f.call == name).fold(None, |due, f| {
            f.number -= 1;
            due.or((f.number == 0).then(|| f.clone()))
        });
        all.retain(|f| f.number > 0);
        due
    });
    match by_variable.cloned().or(by_thread) {
        Some(failure) => Err(Code(failure.code)),
        None => Ok(()),
    }
}

/// Errors after which a context gives nothing else.
fn stays(code: Code) -> bool {
    matches!(code.0, 4 | 214 | 220 | 700 | 702 | 709 | 710 | 714..=719 | 999)
}

type Did<'a> = Result<Guard<'a>>;

/// A function that needs no context.
fn call(name: &str, body: impl FnOnce(&'static Driver, Guard<'static>) -> Did<'static>) -> u32 {
    let driver = driver();
    let mut world = driver.lock();
    if world.settings.trace {
        eprintln!("cuda double: {:?} {name}", std::thread::current().id());
    }
    let started = world.initialised || name == "cuInit";
    let outcome = told_to_fail(&mut world, name).and_then(|()| match started {
        true => body(driver, world),
        false => Err(Code::NOT_INITIALIZED),
    });
    match outcome {
        Ok(_) => 0,
        Err(code) => {
            let mut world = driver.lock();
            if stays(code) {
                world.lose(CURRENT.get(), code);
            }
            if world.settings.trace {
                eprintln!("cuda double: {name} gives {}", code.0);
            }
            code.0
        }
    }
}

/// A function that works in the thread's context.
fn within(name: &str, body: impl FnOnce(&'static Driver, Guard<'static>, Handle) -> Did<'static>) -> u32 {
    call(name, |driver, world| {
        let context = current(&world)?;
        body(driver, world, context)
    })
}

fn current(world: &World) -> Result<Handle> {
    let handle = CURRENT.get();
    match world.contexts.get(&handle) {
        None if handle == 0 => Err(Code::INVALID_CONTEXT),
        None => Err(Code::CONTEXT_IS_DESTROYED),
        Some(Context { lost: Some(code), .. }) => Err(*code),
        Some(_) => Ok(handle),
    }
}

/// Waits for a task, and tells of a fault that was found on the way.
fn finish(
    driver: &'static Driver,
    world: Guard<'static>,
    context: Handle,
    so: impl Fn(&World) -> bool,
) -> Did<'static> {
    let world = driver.until(world, so);
    match world.contexts.get(&context).map(|c| c.lost) {
        Some(None) => Ok(world),
        Some(Some(code)) => Err(code),
        None => Err(Code::CONTEXT_IS_DESTROYED),
    }
}

// -- the driver and its devices -------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: u32) -> u32 {
    call("cuInit", |_, mut world| {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if world.settings.devices == 0 {
            return Err(Code::NO_DEVICE);
        }
        world.initialised = true;
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    let world = driver().lock();
    // SAFETY: the manual's contract.
    unsafe { write(version, world.settings.driver as c_int) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: u32, name: *mut *const c_char) -> u32 {
    // SAFETY: the manual's contract.
    unsafe { name_of(Code::name(code), name) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: u32, what: *mut *const c_char) -> u32 {
    // SAFETY: the manual's contract.
    unsafe { name_of(Code::what(code), what) }
}

unsafe fn name_of(text: Option<&'static str>, to: *mut *const c_char) -> u32 {
    let pointer = text.map_or(std::ptr::null(), |t| t.as_ptr().cast());
    // SAFETY: the caller's promise.
    unsafe { write(to, pointer) };
    if text.is_some() { 0 } else { Code::INVALID_VALUE.0 }
}

fn device(world: &World, device: c_int) -> Result<usize> {
    let index = usize::try_from(device).map_err(|_| Code::INVALID_DEVICE)?;
    (index < world.settings.devices)
        .then_some(index)
        .ok_or(Code::INVALID_DEVICE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    call("cuDeviceGetCount", |_, world| {
        // SAFETY: the manual's contract.
        unsafe { write(count, world.settings.devices as c_int) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> u32 {
    call("cuDeviceGet", |_, world| {
        let index = device(&world, ordinal)?;
        // SAFETY: the manual's contract.
        unsafe { write(to, index as c_int) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, of: c_int) -> u32 {
    call("cuDeviceGetName", |_, world| {
        device(&world, of)?;
        let (major, minor) = world.settings.capability;
        let text = format!("double of a {major}.{minor} card");
        let length = usize::try_from(length)
            .ok()
            .filter(|&n| n > 0)
            .ok_or(Code::INVALID_VALUE)?;
        let shown = &text.as_bytes()[..text.len().min(length - 1)];
        // SAFETY: the manual's contract: as many bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(shown.as_ptr(), name.cast(), shown.len());
            name.add(shown.len()).write(0);
        }
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(to: *mut [u8; 16], of: c_int) -> u32 {
    call("cuDeviceGetUuid_v2", |_, world| {
        let index = device(&world, of)?;
        let mut uuid = *b"a double, nr.   ";
        uuid[15] = index as u8;
        // SAFETY: the manual's contract.
        unsafe { write(to, uuid) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(to: *mut [u8; 16], of: c_int) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuDeviceGetUuid_v2(to, of) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(to: *mut c_int, attribute: u32, of: c_int) -> u32 {
    call("cuDeviceGetAttribute", |_, world| {
        device(&world, of)?;
        let value = world.settings.attribute(attribute).ok_or(Code::INVALID_VALUE)?;
        // SAFETY: the manual's contract.
        unsafe { write(to, value) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(to: *mut usize, of: c_int) -> u32 {
    call("cuDeviceTotalMem_v2", |_, world| {
        device(&world, of)?;
        // SAFETY: the manual's contract.
        unsafe { write(to, world.settings.memory as usize) };
        Ok(world)
    })
}

// -- contexts -------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(to: *mut Handle, of: c_int) -> u32 {
    call("cuDevicePrimaryCtxRetain", |_, mut world| {
        let index = device(&world, of)?;
        if world.primary[index].0 == 0 {
            world.primary[index].1 = world.open_context(index);
        }
        world.primary[index].0 += 1;
        // SAFETY: the manual's contract.
        unsafe { write(to, world.primary[index].1) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(of: c_int) -> u32 {
    call("cuDevicePrimaryCtxRelease_v2", |driver, mut world| {
        let index = device(&world, of)?;
        let (count, handle) = world.primary[index];
        match count {
            0 => return Err(Code::INVALID_CONTEXT),
            1 => {
                world = driver.until(world, |world| world.all_done(handle));
                // A broken card stays broken for this process, whoever opens it next.
                if world.contexts[&handle].lost.is_none() {
                    world.close_context(handle);
                    world.primary[index] = (0, 0);
                } else {
                    world.primary[index].0 = 1;
                }
            }
            _ => world.primary[index].0 -= 1,
        }
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease(of: c_int) -> u32 {
    cuDevicePrimaryCtxRelease_v2(of)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(to: *mut Handle) -> u32 {
    call("cuCtxGetCurrent", |_, world| {
        // SAFETY: the manual's contract.
        unsafe { write(to, CURRENT.get()) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> u32 {
    call("cuCtxSetCurrent", |_, world| {
        if context != 0 && !world.contexts.contains_key(&context) {
            return Err(Code::INVALID_CONTEXT);
        }
        CURRENT.set(context);
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(to: *mut c_int) -> u32 {
    within("cuCtxGetDevice", |_, world, context| {
        // SAFETY: the manual's contract.
        unsafe { write(to, world.contexts[&context].device as c_int) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> u32 {
    within("cuCtxSynchronize", |driver, mut world, context| {
        if let Some(capture) = world.any_capture_in(context) {
            world.invalidate(capture);
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        finish(driver, world, context, |world| world.all_done(context))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> u32 {
    within("cuCtxGetStreamPriorityRange", |_, world, _| {
        // SAFETY: the manual's contract.
        unsafe {
            write(least, 0);
            write(greatest, -5);
        }
        Ok(world)
    })
}

// -- streams --------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(to: *mut Handle, flags: u32) -> u32 {
    within("cuStreamCreate", |_, mut world, context| {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let stream = world.open_stream(context, flags == 0);
        // SAFETY: the manual's contract.
        unsafe { write(to, stream) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(to: *mut Handle, flags: u32, _priority: c_int) -> u32 {
    // SAFETY: the same contract; priorities say nothing of order.
    unsafe { cuStreamCreate(to, flags) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(handle: Handle) -> u32 {
    within("cuStreamDestroy_v2", |_, mut world, context| {
        if handle <= 2 {
            return Err(Code::INVALID_HANDLE);
        }
        let stream = world.stream(context, handle)?;
        world.not_captured(stream)?;
        world.destroy_stream(stream);
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(handle: Handle) -> u32 {
    within("cuStreamSynchronize", |driver, mut world, context| {
        let stream = world.stream(context, handle)?;
        world.not_captured(stream)?;
        world.not_implicit(context, handle <= LEGACY)?;
        // The legacy stream waits for the others that are not apart from it.
        let last = match handle <= LEGACY {
            true => world.enqueue(stream, Vec::new(), crate::work::Work::One(Action::Join)),
            false => world.last_task(stream),
        };
        finish(driver, world, context, move |world| world.is_done(last))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(handle: Handle) -> u32 {
    within("cuStreamQuery", |driver, mut world, context| {
        let stream = world.stream(context, handle)?;
        world.not_captured(stream)?;
        let world = driver.idle(world);
        match world.is_drained(stream) {
            true => Ok(world),
            false => Err(Code::NOT_READY),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(handle: Handle, event: Handle, _flags: u32) -> u32 {
    within("cuStreamWaitEvent", |driver, mut world, context| {
        let stream = world.stream(context, handle)?;
        let recorded = world.events.get(&event).ok_or(Code::INVALID_HANDLE)?.recorded;
        match (recorded, world.capture_of(stream)?) {
            (Recorded::Captured(capture), _) => world.join_capture(capture, stream, event)?,
            (Recorded::Never, _) => {}
            (Recorded::Task(_), Some(capture)) => {
                world.invalidate(capture);
                return Err(Code::STREAM_CAPTURE_ISOLATION);
            }
            (Recorded::Task(task), None) => {
                world.enqueue(stream, vec![task], crate::work::Work::One(Action::Join));
            }
        }
        Ok(driver.idle(world))
    })
}

// -- captures and graphs --------------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(handle: Handle, mode: u32) -> u32 {
    within("cuStreamBeginCapture_v2", |_, mut world, context| {
        let mode = match mode {
            0 => Mode::Global,
            1 => Mode::ThreadLocal,
            2 => Mode::Relaxed,
            _ => return Err(Code::INVALID_VALUE),
        };
        let stream = world.stream(context, handle)?;
        if handle <= LEGACY {
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        world.begin_capture(stream, mode)?;
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(handle: Handle, to: *mut Handle) -> u32 {
    within("cuStreamEndCapture", |_, mut world, context| {
        let stream = world.stream(context, handle)?;
        // SAFETY: the manual's contract: null where it fails.
        unsafe { write(to, 0) };
        let graph = world.end_capture(stream)?;
        // SAFETY: the manual's contract.
        unsafe { write(to, graph) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(handle: Handle, to: *mut u32) -> u32 {
    within("cuStreamIsCapturing", |_, mut world, context| {
        let stream = world.stream(context, handle)?;
        world.not_implicit(context, handle <= LEGACY)?;
        // SAFETY: the manual's contract.
        unsafe { write(to, world.capture_status(stream)) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(to: *mut Handle, graph: Handle, flags: u64) -> u32 {
    within("cuGraphInstantiateWithFlags", |_, mut world, _| {
        if flags & !0b1111 != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let nodes = world.graphs.get(&graph).ok_or(Code::INVALID_HANDLE)?.nodes.clone();
        let exec = world.handle();
        world.execs.insert(exec, Exec { nodes, last: 0 });
        // SAFETY: the manual's contract.
        unsafe { write(to, exec) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(exec: Handle, handle: Handle) -> u32 {
    within("cuGraphLaunch", |driver, mut world, context| {
        let stream = world.stream(context, handle)?;
        // A graph inside of a captured stream would become a child, which nobody here wants.
        world.not_captured(stream)?;
        world.not_implicit(context, handle <= LEGACY)?;
        let (nodes, last) = match world.execs.get(&exec) {
            Some(found) => (found.nodes.clone(), found.last),
            None => return Err(Code::INVALID_HANDLE),
        };
        // What an earlier launch allocated and did not free is there still.
        for node in &nodes {
            if let Action::Allocate(address) = node.action
                && world.memory.piece(address).is_some_and(|p| p.state == State::Live)
            {
                return Err(Code::INVALID_VALUE);
            }
        }
        let task = world.enqueue(stream, vec![last], World::nodes(&nodes));
        if let Some(exec) = world.execs.get_mut(&exec) {
            exec.last = task;
        }
        Ok(driver.idle(world))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphUpload(exec: Handle, handle: Handle) -> u32 {
    within("cuGraphUpload", |_, mut world, context| {
        world.stream(context, handle)?;
        world.execs.get(&exec).ok_or(Code::INVALID_HANDLE)?;
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: Handle) -> u32 {
    within("cuGraphDestroy", |_, mut world, _| {
        world.graphs.remove(&graph).ok_or(Code::INVALID_HANDLE)?;
        Ok(world)
    })
}

/// What was launched of it still runs.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(exec: Handle) -> u32 {
    within("cuGraphExecDestroy", |_, mut world, _| {
        world.execs.remove(&exec).ok_or(Code::INVALID_HANDLE)?;
        Ok(world)
    })
}

// -- events ---------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(to: *mut Handle, flags: u32) -> u32 {
    const DISABLE_TIMING: u32 = 2;
    within("cuEventCreate", |_, mut world, context| {
        if flags > 7 {
            return Err(Code::INVALID_VALUE);
        }
        let handle = world.handle();
        let event = Event {
            context,
            times: flags & DISABLE_TIMING == 0,
            recorded: Recorded::Never,
            at: None,
        };
        world.events.insert(handle, event);
        // SAFETY: the manual's contract.
        unsafe { write(to, handle) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: Handle) -> u32 {
    within("cuEventDestroy_v2", |_, mut world, _| {
        world.events.remove(&event).ok_or(Code::INVALID_HANDLE)?;
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: Handle, handle: Handle) -> u32 {
    within("cuEventRecord", |driver, mut world, context| {
        let stream = world.stream(context, handle)?;
        let known = world.events.get(&event).ok_or(Code::INVALID_HANDLE)?;
        if known.context != context {
            return Err(Code::INVALID_HANDLE);
        }
        world.not_implicit(context, handle <= LEGACY)?;
        match world.capture_of(stream)? {
            Some(capture) => world.record_in_capture(capture, stream, event),
            None => {
                let task = world.enqueue(stream, Vec::new(), crate::work::Work::One(Action::Record(event)));
                if let Some(event) = world.events.get_mut(&event) {
                    event.recorded = Recorded::Task(task);
                    event.at = None;
                }
            }
        }
        Ok(driver.idle(world))
    })
}

/// The task that an event stands for; none where it was never recorded.
fn task_of(world: &World, event: Handle) -> Result<Option<u64>> {
    match world.events.get(&event).ok_or(Code::INVALID_HANDLE)?.recorded {
        Recorded::Never => Ok(None),
        Recorded::Task(task) => Ok(Some(task)),
        Recorded::Captured(_) => Err(Code::CAPTURED_EVENT),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: Handle) -> u32 {
    within("cuEventQuery", |driver, world, _| {
        let task = task_of(&world, event)?;
        let world = driver.idle(world);
        match task.is_none_or(|task| world.is_done(task)) {
            true => Ok(world),
            false => Err(Code::NOT_READY),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: Handle) -> u32 {
    within("cuEventSynchronize", |driver, world, context| {
        let task = task_of(&world, event)?;
        finish(driver, world, context, move |world| {
            task.is_none_or(|task| world.is_done(task))
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(ms: *mut f32, start: Handle, end: Handle) -> u32 {
    within("cuEventElapsedTime_v2", |_, world, _| {
        let at = |handle: Handle| {
            let event = world.events.get(&handle).ok_or(Code::INVALID_HANDLE)?;
            match (event.times, event.recorded) {
                (false, _) | (_, Recorded::Never) => Err(Code::INVALID_HANDLE),
                (true, Recorded::Captured(_)) => Err(Code::CAPTURED_EVENT),
                (true, Recorded::Task(task)) if !world.is_done(task) => Err(Code::NOT_READY),
                (true, Recorded::Task(_)) => event.at.ok_or(Code::NOT_READY),
            }
        };
        let (start, end) = (at(start)?, at(end)?);
        let elapsed = end.saturating_duration_since(start).as_secs_f32() * 1e3;
        // SAFETY: the manual's contract.
        unsafe { write(ms, elapsed) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, start: Handle, end: Handle) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuEventElapsedTime_v2(ms, start, end) }
}

// -- memory ---------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, bytes: usize) -> u32 {
    within("cuMemAlloc_v2", |_, mut world, context| {
        world.not_unsafe()?;
        let (device, most) = (world.contexts[&context].device, world.settings.memory);
        let address = world.memory.reserve(device, bytes as u64, most, State::Live, None)?;
        // SAFETY: the manual's contract.
        unsafe { write(to, address) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(to: *mut u64, bytes: usize, handle: Handle) -> u32 {
    within("cuMemAllocAsync", |driver, mut world, context| {
        let stream = world.stream(context, handle)?;
        world.not_implicit(context, handle <= LEGACY)?;
        let capture = world.capture_of(stream)?;
        let (device, most) = (world.contexts[&context].device, world.settings.memory);
        let address = world
            .memory
            .reserve(device, bytes as u64, most, State::Coming, capture)?;
        world.submit(stream, Action::Allocate(address))?;
        // SAFETY: the manual's contract.
        unsafe { write(to, address) };
        Ok(driver.idle(world))
    })
}

/// The least that the manual promises: it waits for nobody.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    within("cuMemFree_v2", |_, mut world, context| {
        if address == 0 {
            return Ok(world);
        }
        world.not_unsafe()?;
        match world.memory.piece(address) {
            Some(piece) if piece.freeing || piece.graph.is_some() => return Err(Code::INVALID_VALUE),
            _ => {}
        }
        if let Some(what) = world.memory.release(address)? {
            world.report(what);
            world.lose(context, Code::ILLEGAL_ADDRESS);
        }
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, handle: Handle) -> u32 {
    within("cuMemFreeAsync", |driver, mut world, context| {
        let stream = world.stream(context, handle)?;
        world.not_implicit(context, handle <= LEGACY)?;
        let capture = world.capture_of(stream)?;
        let piece = world
            .memory
            .piece(address)
            .filter(|p| !p.freeing)
            .ok_or(Code::INVALID_VALUE)?;
        // In a capture only what the graph allocates can be freed.
        if let Some(capture) = capture.filter(|_| piece.graph != capture) {
            world.invalidate(capture);
            return Err(Code::INVALID_VALUE);
        }
        piece.freeing = capture.is_none();
        if capture.is_none() {
            piece.graph = None;
        }
        world.submit(stream, Action::Free(address))?;
        Ok(driver.idle(world))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(to: *mut u64, bytes: usize, flags: u32) -> u32 {
    within("cuMemHostAlloc", |_, mut world, _| {
        if flags > 7 {
            return Err(Code::INVALID_VALUE);
        }
        world.not_unsafe()?;
        let address = world.memory.pin(bytes as u64)?;
        // SAFETY: the manual's contract.
        unsafe { write(to, address) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(to: *mut u64, bytes: usize) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuMemHostAlloc(to, bytes, 0) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: u64) -> u32 {
    within("cuMemFreeHost", |_, mut world, context| {
        world.not_unsafe()?;
        let bytes = world.memory.unpin(address)?;
        if world.in_flight(address, bytes) {
            world.report(format!(
                "pinned memory at {address:#x} is freed while a copy of it is under way"
            ));
            world.lose(context, Code::ILLEGAL_ADDRESS);
        }
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    within("cuMemGetInfo_v2", |_, world, context| {
        let all = world.settings.memory;
        let used = world.memory.used(world.contexts[&context].device);
        // SAFETY: the manual's contract.
        unsafe {
            write(free, (all - used) as usize);
            write(total, all as usize);
        }
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttribute(to: *mut c_void, attribute: u32, address: u64) -> u32 {
    const MEMORY_TYPE: u32 = 2;
    const DEVICE_ORDINAL: u32 = 9;
    within("cuPointerGetAttribute", |_, world, _| {
        let piece = world.memory.holds(address, 1);
        let value = match (attribute, piece) {
            (MEMORY_TYPE, Some(_)) => 2,
            (MEMORY_TYPE, None) if world.memory.is_pinned(address) => 1,
            (DEVICE_ORDINAL, Some(piece)) => piece.device as u32,
            (MEMORY_TYPE | DEVICE_ORDINAL, None) => return Err(Code::INVALID_VALUE),
            _ => return Err(Code::NOT_SUPPORTED),
        };
        // SAFETY: the manual's contract: these attributes are 32 bits.
        unsafe { write(to.cast(), value) };
        Ok(world)
    })
}

/// Whether all of a range is device memory that the driver knows.
fn known(world: &World, address: u64, bytes: u64) -> Result {
    world.memory.holds(address, bytes).map(drop).ok_or(Code::INVALID_VALUE)
}

/// A copy or a fill in a stream; with `wait` the call returns when it is done.
fn transfer(
    name: &str,
    handle: Handle,
    wait: impl FnOnce(&World) -> bool,
    make: impl FnOnce(&World) -> Result<Action>,
) -> u32 {
    within(name, |driver, mut world, context| {
        let stream = world.stream(context, handle)?;
        world.not_implicit(context, handle <= LEGACY)?;
        let action = make(&world)?;
        let wait = wait(&world);
        let task = world.submit(stream, action)?;
        match task {
            Some(task) if wait => finish(driver, world, context, move |world| world.is_done(task)),
            None if wait => {
                world.not_captured(stream)?;
                Ok(world)
            }
            _ => Ok(driver.idle(world)),
        }
    })
}

/// Bytes on their way in: read now, or when their turn comes.
///
/// # Safety
///
/// `from` has as many bytes.
unsafe fn source(world: &World, from: *const u8, bytes: usize) -> Source {
    let late = world.settings.reads_pageable || world.memory.is_pinned(from as u64);
    match late {
        true => Source::Host(from as u64),
        // SAFETY: the caller's promise.
        false => Source::Staged(unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec()),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, handle: Handle) -> u32 {
    transfer(
        "cuMemcpyHtoDAsync_v2",
        handle,
        |_| false,
        |world| {
            required(from)?;
            known(world, to, bytes as u64)?;
            // SAFETY: the manual's contract.
            let from = unsafe { source(world, from, bytes) };
            let bytes = bytes as u64;
            Ok(Action::CopyIn { to, from, bytes })
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const u8, bytes: usize) -> u32 {
    transfer(
        "cuMemcpyHtoD_v2",
        0,
        |_| true,
        |world| {
            required(from)?;
            known(world, to, bytes as u64)?;
            // SAFETY: the manual's contract.
            let from = unsafe { source(world, from, bytes) };
            let bytes = bytes as u64;
            Ok(Action::CopyIn { to, from, bytes })
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, handle: Handle) -> u32 {
    // Into pageable memory it returns when the copy is done.
    let pageable = |world: &World| !world.settings.reads_pageable && !world.memory.is_pinned(to as u64);
    transfer("cuMemcpyDtoHAsync_v2", handle, pageable, |world| {
        required(to)?;
        known(world, from, bytes as u64)?;
        Ok(Action::CopyOut {
            to: to as u64,
            from,
            bytes: bytes as u64,
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut u8, from: u64, bytes: usize) -> u32 {
    transfer(
        "cuMemcpyDtoH_v2",
        0,
        |_| true,
        |world| {
            required(to)?;
            known(world, from, bytes as u64)?;
            Ok(Action::CopyOut {
                to: to as u64,
                from,
                bytes: bytes as u64,
            })
        },
    )
}

fn copy(world: &World, to: u64, from: u64, bytes: usize) -> Result<Action> {
    let bytes = bytes as u64;
    known(world, to, bytes)?;
    known(world, from, bytes)?;
    Ok(Action::Copy { to, from, bytes })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, handle: Handle) -> u32 {
    transfer(
        "cuMemcpyDtoDAsync_v2",
        handle,
        |_| false,
        |world| copy(world, to, from, bytes),
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    transfer("cuMemcpyDtoD_v2", 0, |_| false, |world| copy(world, to, from, bytes))
}

fn set(world: &World, to: u64, value: u8, bytes: usize) -> Result<Action> {
    let bytes = bytes as u64;
    known(world, to, bytes)?;
    Ok(Action::Set { to, value, bytes })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, handle: Handle) -> u32 {
    transfer(
        "cuMemsetD8Async",
        handle,
        |_| false,
        |world| set(world, to, value, bytes),
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8_v2(to: u64, value: u8, bytes: usize) -> u32 {
    transfer("cuMemsetD8_v2", 0, |_| false, |world| set(world, to, value, bytes))
}

// -- modules and launches -------------------------------------------------------------------------------

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(to: *mut Handle, image: *const u8) -> u32 {
    within("cuModuleLoadData", |_, mut world, context| {
        required(image)?;
        world.not_unsafe()?;
        // SAFETY: the manual's contract.
        let loaded = unsafe { images::load(&world.images, image, &world.settings)? };
        if matches!(loaded, Loaded::Foreign) {
            eprintln!("cuda double: a module is loaded whose kernels have no SIMT build here");
        }
        let handle = world.handle();
        world.modules.insert(handle, Module { context, loaded });
        // SAFETY: the manual's contract.
        unsafe { write(to, handle) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: Handle) -> u32 {
    within("cuModuleUnload", |_, mut world, _| {
        world.not_unsafe()?;
        world.modules.remove(&module).ok_or(Code::INVALID_HANDLE)?;
        world.functions.retain(|_, f| f.module != module);
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(to: *mut Handle, module: Handle, name: *const c_char) -> u32 {
    within("cuModuleGetFunction", |_, mut world, _| {
        required(name)?;
        // SAFETY: the manual's contract.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let loaded = &world.modules.get(&module).ok_or(Code::INVALID_HANDLE)?.loaded;
        let refused = match loaded {
            Loaded::Foreign => Some(format!(
                "kernel {name} has no SIMT build here, so the double refuses it"
            )),
            Loaded::Known(image) if !image.kernels.contains(&name) => {
                Some(format!("{} has no kernel {name}", image.name))
            }
            Loaded::Known(_) => None,
        };
        // Lazy loading: the code of a kernel may be brought to the card now.
        world.not_unsafe()?;
        if let Some(what) = refused {
            eprintln!("cuda double: {what}");
            return Err(Code::NOT_FOUND);
        }
        let kernel = simt::find(&name).ok_or(Code::NOT_FOUND)?;
        let handle = world.handle();
        let function = Function {
            module,
            kernel,
            shared: 48 * 1024,
        };
        world.functions.insert(handle, function);
        // SAFETY: the manual's contract.
        unsafe { write(to, handle) };
        Ok(world)
    })
}

const MAX_THREADS: u32 = 0;
const MAX_DYNAMIC_SHARED: u32 = 8;

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: Handle, attribute: u32, value: c_int) -> u32 {
    within("cuFuncSetAttribute", |_, mut world, _| {
        let most = world.settings.shared_limit();
        let function = world.functions.get_mut(&function).ok_or(Code::INVALID_HANDLE)?;
        match (attribute, u32::try_from(value)) {
            (MAX_DYNAMIC_SHARED, Ok(bytes)) if bytes <= most => function.shared = bytes,
            (MAX_DYNAMIC_SHARED, _) => return Err(Code::INVALID_VALUE),
            _ => {} // carve-outs and the like change no result
        }
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(to: *mut c_int, attribute: u32, function: Handle) -> u32 {
    within("cuFuncGetAttribute", |_, world, _| {
        let function = world.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let value = match attribute {
            MAX_THREADS => function.kernel.max_threads,
            MAX_DYNAMIC_SHARED => function.shared,
            _ => 0,
        };
        // SAFETY: the manual's contract.
        unsafe { write(to, value as c_int) };
        Ok(world)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    handle: Handle,
    params: *const *const u8,
    extra: *const *const c_void,
) -> u32 {
    within("cuLaunchKernel", |driver, mut world, context| {
        let stream = world.stream(context, handle)?;
        world.not_implicit(context, handle <= LEGACY)?;
        let found = world.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let of = world.modules.get(&found.module).ok_or(Code::INVALID_HANDLE)?;
        if of.context != context {
            return Err(Code::INVALID_HANDLE);
        }
        let threads = block_x.checked_mul(block_y).and_then(|n| n.checked_mul(block_z));
        let threads = threads.filter(|&n| n > 0 && n <= 1024).ok_or(Code::INVALID_VALUE)?;
        // The kernels of this crate's are one-dimensional, and take one struct.
        if block_y != 1 || block_z != 1 || !extra.is_null() || threads > found.kernel.max_threads {
            return Err(Code::INVALID_VALUE);
        }
        let grid = [grid_x, grid_y, grid_z];
        if grid.contains(&0) || grid_x > i32::MAX as u32 || grid_y > 65_535 || grid_z > 65_535 {
            return Err(Code::INVALID_VALUE);
        }
        if shared > found.shared {
            return Err(Code::INVALID_VALUE);
        }
        required(params)?;
        let kernel = found.kernel.clone();
        // SAFETY: the manual's contract: a pointer to each parameter.
        let params = unsafe {
            required(*params)?;
            Params::copy(*params, kernel.params_bytes)
        };
        let launch = Launch {
            kernel,
            params,
            grid,
            threads,
            shared,
        };
        world.submit(stream, Action::Launch(Box::new(launch)))?;
        Ok(driver.idle(world))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut [u64; 16],
    dtype: u32,
    rank: u32,
    address: u64,
    extents: *const u64,
    strides: *const u64,
    size: *const u32,
    steps: *const u32,
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
) -> u32 {
    within("cuTensorMapEncodeTiled", |_, world, _| {
        if !(1..=5).contains(&rank) || !(map as u64).is_multiple_of(64) {
            return Err(Code::INVALID_VALUE);
        }
        required(extents)?;
        required(size)?;
        required(steps)?;
        let n = rank as usize;
        // SAFETY: the manual's contract: `rank` of each, of strides one less.
        let tiled = unsafe {
            if n > 1 {
                required(strides)?;
            }
            Tiled {
                dtype,
                address,
                extents: std::slice::from_raw_parts(extents, n).to_vec(),
                strides: (0..n - 1).map(|i| *strides.add(i)).collect(),
                size: std::slice::from_raw_parts(size, n).to_vec(),
                steps: std::slice::from_raw_parts(steps, n).to_vec(),
                interleave,
                swizzle,
                promotion,
                fill,
            }
        };
        let words = tiled.encode().map_err(|(code, what)| {
            eprintln!("cuda double: {what}");
            code
        })?;
        // SAFETY: the manual's contract.
        unsafe { write(map, words) };
        Ok(world)
    })
}
