//! What to do about an error of the driver's.

/// Whether every later call in the process fails too: what the driver calls sticky.
pub(super) fn stays(code: u32) -> bool {
    matches!(
        code,
        4 // the driver shuts down
        | 214 | 220 | 226 // uncorrectable memory, NVLink, a contained error
        | 700 | 702 | 709 | 710 | 714
            ..=719 | 721 // what a kernel did, or a context destroyed under it
        | 999
    )
}

/// A sentence on the error of this number; none where the driver's own name says it all.
pub(super) fn of(code: u32) -> Option<&'static str> {
    let advice = match code {
        3 | 4 => "the driver is shutting down: nothing of CUDA can be used while the process ends",
        34 => {
            "this is the CUDA toolkit's stub and no driver: take its folder (lib64/stubs) out of LD_LIBRARY_PATH, or install \
             the driver"
        }
        36 | 46 | 802 => "the GPU or its fabric is not ready or is used by another process: look at nvidia-smi",
        100 => "the driver shows no GPU: look at CUDA_VISIBLE_DEVICES and nvidia-smi",
        209 => {
            "the build has no code for this card: name its compute capability in PACKFORCING_CUDA_ARCHS and build again"
        }
        214 | 220 | 226 | 721 => {
            "the hardware reported a fault: look at nvidia-smi and the kernel's log, then start the process again"
        }
        218 | 221 | 222 => {
            "the driver is older than the nvcc that compiled the kernels: update it, or build with PACKFORCING_CUDA_ARCHS \
             naming the GPU's own architecture"
        }
        700 | 702 | 710 | 714..=719 | 999 => "nothing of CUDA works in this process any more: start it again",
        709 => "somebody destroyed or reset the context under this device: start the process again",
        803 => "the loaded libcuda and the kernel module are of different versions: reboot, or mend the installation",
        804 => {
            "a forward-compatibility libcuda (cuda-compat) does not support this card: take it out of LD_LIBRARY_PATH, or \
             update the driver"
        }
        805..=810 => {
            "the MPS server did not take this process: look at nvidia-cuda-mps-control, or unset CUDA_MPS_PIPE_DIRECTORY"
        }
        900 => "a stream is being captured, which forbids this call: make it before or after the capture",
        901 => {
            "an earlier error broke the capture: it was abandoned, and what was to be recorded must be recorded anew"
        }
        902 | 905 => "a captured stream may depend on nothing outside of its capture: order the work before it begins",
        903 => "the capture was begun on another stream: end it there",
        904 => "a stream joined the capture and was not waited for before its end",
        906 => "the default stream waits for captured ones, which cannot be: use a stream of its own",
        907 => "the event was recorded in a capture and says nothing outside of it",
        908 => "a capture ends on the thread where it was begun",
        _ => return None,
    };
    Some(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_says_what_to_do() {
        for (code, says) in [
            (34, "stub"),
            (209, "PACKFORCING_CUDA_ARCHS"),
            (222, "update"),
            (700, "start it again"),
            (719, "start it again"),
            (803, "kernel module"),
            (804, "cuda-compat"),
            (810, "nvidia-cuda-mps-control"),
        ] {
            let advice = of(code).unwrap_or_else(|| panic!("{code} has no advice"));
            assert!(advice.contains(says), "{code}: {advice}");
        }
        for code in 900..=908 {
            assert!(of(code).is_some_and(|advice| !advice.contains("start")), "{code}");
        }
        // What a retry may mend has no advice of its own, and does not stay.
        for code in [1, 2, 400, 600] {
            assert!(of(code).is_none() && !stays(code), "{code}");
        }
        for code in [700, 702, 715, 716, 719, 709, 999] {
            assert!(stays(code), "{code}");
        }
    }
}
