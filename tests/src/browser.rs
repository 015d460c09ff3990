//! A real browser, driven as a user would: headless Chromium through WebDriver.
//!
//! - Every click and every expectation waits for its element, for at most half a minute.
//! - Exceptions and content security policy violations in the browser are recorded; see [`Browser::errors`].

use std::cell::RefCell;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::common::capabilities::chromium::ChromiumLikeCapabilities as _;
use thirtyfour::error::WebDriverResult;
use thirtyfour::{By, ChromeCapabilities, WebDriver, WebElement};
use tokio::runtime::Runtime;

use crate::client::PATIENCE;
use crate::process::free_addr;

/// How long to wait for an expected state; generous, for slow machines.
const TIMEOUT: Duration = PATIENCE;

/// Polling interval.
const POLL: Duration = Duration::from_millis(25);

/// Records errors; installed before any script of the document runs.
const RECORD_ERRORS: &str = "window.__errors = [];
    addEventListener('error', event => __errors.push(String(event.message)));
    addEventListener('unhandledrejection', event => __errors.push(String(event.reason)));
    addEventListener('securitypolicyviolation', event => __errors.push(`policy: ${event.violatedDirective} ${event.blockedURI}`));";

/// Screen of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    /// 1360 × 800.
    Desktop,
    /// 390 × 780, with a touch screen.
    Phone,
    /// 1280 × 800, for the screenshot in the documentation.
    Documentation,
}

/// A window of a dedicated browser process, closed on drop.
pub struct Browser {
    runtime: Runtime,
    window: Option<WebDriver>,
    driver: Child,
    base: RefCell<String>,
    folder: TempDir,
}

impl Browser {
    /// Opens a window; [`Browser::goto`] takes paths below `http://{address}`.
    ///
    /// # Panics
    /// Panics if Chromium or its driver is missing (`tests/install-servers` installs both) or does not start.
    #[must_use]
    pub fn open(address: impl std::fmt::Display, screen: Screen) -> Self {
        let folder = tempfile::Builder::new().prefix("logweir-browser-").tempdir().expect("a temporary directory");
        let port = free_addr().port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: `prctl` is a single system call and touches no memory. It ends the driver and its browser with us.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let driver = command.spawn().expect("chromedriver should start; tests/install-servers installs it");
        // The WebDriver client is built with TLS, because features are unified with the program's, and needs a
        // provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let url = format!("http://127.0.0.1:{port}");
        let window = runtime.block_on(connect(&url, folder.path(), screen));
        let browser = Self { runtime, window: Some(window), driver, base: RefCell::default(), folder };
        *browser.base.borrow_mut() = format!("http://{address}");
        browser.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": RECORD_ERRORS }));
        let downloads = json!({ "behavior": "allow", "downloadPath": browser.folder.path() });
        browser.devtools("Browser.setDownloadBehavior", downloads);
        let metrics = |width, height, scale, mobile| {
            let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile });
            browser.devtools("Emulation.setDeviceMetricsOverride", metrics);
        };
        // A headless window has a title bar, too: its document is smaller than the window.
        if screen == Screen::Documentation {
            metrics(1280, 800, 1, false);
        }
        if screen == Screen::Phone {
            metrics(390, 780, 2, true);
            browser.devtools("Emulation.setTouchEmulationEnabled", json!({ "enabled": true }));
        }
        browser
    }

    /// Navigates to `path`.
    pub fn goto(&self, path: &str) {
        let url = format!("{}{path}", self.base.borrow());
        self.run(self.window().goto(&url));
    }

    /// Returns the path and query of the current URL.
    #[must_use]
    pub fn path(&self) -> String {
        self.js("return location.pathname + location.search").as_str().unwrap_or_default().to_owned()
    }

    /// Goes back one step in the history.
    pub fn back(&self) {
        self.run(self.window().back());
    }

    /// Emulates the system's color scheme, `light` or `dark`.
    pub fn color_scheme(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features);
    }

    /// Runs a function body in the document and returns its result.
    #[must_use]
    pub fn js(&self, body: &str) -> Value {
        self.run(async { Ok(self.window().execute(body, Vec::new()).await?.json().clone()) })
    }

    /// As [`Browser::js`], for asynchronous code that passes its result to its last argument.
    #[must_use]
    pub fn js_async(&self, body: &str) -> Value {
        self.run(async { Ok(self.window().execute_async(body, Vec::new()).await?.json().clone()) })
    }

    /// Clicks the first element that matches `css`.
    pub fn click(&self, css: &str) {
        self.retry(&format!("a click on {css}"), async |window: &WebDriver| {
            window.find(By::Css(css)).await?.click().await
        });
    }

    /// Clicks the first element that matches `css` and whose text or label contains `text`.
    pub fn click_on(&self, css: &str, text: &str) {
        self.retry(&format!("a click on {css} with {text:?}"), async |window: &WebDriver| {
            for element in window.find_all(By::Css(css)).await? {
                if named(&element).await?.contains(text) {
                    return element.click().await;
                }
            }
            window.find(By::Css("no-such-element")).await.map(|_| ())
        });
    }

    /// Clears a field and types `text` into it.
    pub fn fill(&self, css: &str, text: &str) {
        self.retry(&format!("writing into {css}"), async |window: &WebDriver| {
            let field = window.find(By::Css(css)).await?;
            field.clear().await?;
            field.send_keys(text).await
        });
    }

    /// Types into the focused element.
    pub fn keys(&self, keys: &str) {
        self.retry("typing", async |window: &WebDriver| window.active_element().await?.send_keys(keys).await);
    }

    /// Sets the value of a field with a native picker, such as a date field.
    pub fn set(&self, css: &str, value: &str) {
        let _ = self.js(&format!(
            "const field = document.querySelector({css:?}); field.value = {value:?};
             field.dispatchEvent(new Event('input', {{ bubbles: true }}));"
        ));
    }

    /// Drags across the element that matches `css`, between two fractions of its width.
    pub fn drag(&self, css: &str, from: f64, to: f64) {
        let place = self.js(&format!("const box = document.querySelector({css:?}).getBoundingClientRect(); return [box.left, box.width, box.top + box.height / 2]"));
        let number = |index: usize| place[index].as_f64().unwrap_or_default();
        #[allow(clippy::cast_possible_truncation)] // pixels
        let x = |share: f64| (number(0) + number(1) * share) as i64;
        #[allow(clippy::cast_possible_truncation)]
        let y = number(2) as i64;
        let actions = self.window().action_chain().move_to(x(from), y).click_and_hold();
        let actions = actions.move_to(x(f64::midpoint(from, to)), y).move_to(x(to), y).release();
        self.run(actions.perform());
    }

    /// Returns the texts of all elements that match `css` now.
    #[must_use]
    pub fn texts(&self, css: &str) -> Vec<String> {
        let found = self.js(&format!("return [...document.querySelectorAll({css:?})].map(one => one.innerText)"));
        let texts = found.as_array().into_iter().flatten();
        texts.map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Returns the text of the first element that matches `css`; empty without a match.
    #[must_use]
    pub fn text(&self, css: &str) -> String {
        self.texts(css).into_iter().next().unwrap_or_default()
    }

    /// Returns the number of elements that match `css` now.
    #[must_use]
    pub fn count(&self, css: &str) -> usize {
        self.texts(css).len()
    }

    /// Waits until `holds` returns true.
    ///
    /// # Panics
    /// Panics after the timeout, with the visible text.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !holds(self) {
            if Instant::now() > deadline {
                let shown = self.text("body");
                panic!("not within {TIMEOUT:?}: {what}; {}, errors {:?}, text:\n{shown}", self.path(), self.errors());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until an element that matches `css` contains `text`.
    pub fn see(&self, css: &str, text: &str) {
        self.until(&format!("{text:?} in {css}"), |browser| {
            browser.texts(css).iter().any(|found| found.contains(text))
        });
    }

    /// Returns the exceptions and policy violations recorded in the document.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let found = self.js("return window.__errors ?? []");
        found.as_array().into_iter().flatten().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Returns the files downloaded so far.
    #[must_use]
    pub fn downloads(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path()).filter(|path| path.is_file());
        files.filter(|path| path.extension().is_some_and(|extension| extension != "crdownload")).collect()
    }

    /// Saves a screenshot to the directory named by `LOGWEIR_SCREENSHOTS`; does nothing without it.
    pub fn screenshot(&self, name: &str) {
        let Some(folder) = std::env::var_os("LOGWEIR_SCREENSHOTS") else { return };
        std::fs::create_dir_all(&folder).expect("the screenshot directory should be writable");
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), self.png())
            .expect("a screenshot should be written");
    }

    /// Returns a screenshot of the window as PNG.
    #[must_use]
    pub fn png(&self) -> Vec<u8> {
        self.run(self.window().screenshot_as_png())
    }

    fn devtools(&self, command: &str, parameters: Value) {
        let _ = self.run(self.window().cdp().send_raw(command, parameters));
    }

    fn window(&self) -> &WebDriver {
        self.window.as_ref().expect("the window should be open until drop")
    }

    fn run<T>(&self, command: impl Future<Output = WebDriverResult<T>>) -> T {
        self.runtime.block_on(command).expect("the browser should execute the command")
    }

    /// Retries until `act` succeeds: the element may not exist yet, or may be replaced by a render.
    fn retry<F>(&self, what: &str, act: F)
    where
        F: AsyncFn(&WebDriver) -> WebDriverResult<()>,
    {
        let deadline = Instant::now() + TIMEOUT;
        while let Err(error) = self.runtime.block_on(act(self.window())) {
            if Instant::now() > deadline {
                let shown = self.text("body");
                panic!("{what}: {error}; {}, errors {:?}, text:\n{shown}", self.path(), self.errors());
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(window) = self.window.take() {
            let _ = self.runtime.block_on(window.quit());
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Returns the text and label of an element.
async fn named(element: &WebElement) -> WebDriverResult<String> {
    let label = element.attr("aria-label").await?.unwrap_or_default();
    Ok(format!("{}\n{label}", element.text().await?))
}

async fn connect(url: &str, profile: &Path, screen: Screen) -> WebDriver {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match WebDriver::new(url, capabilities(profile, screen).expect("the options should be valid")).await {
            Ok(window) => return window,
            Err(error) => assert!(Instant::now() < deadline, "no Chromium session: {error}"),
        }
        tokio::time::sleep(POLL).await;
    }
}

fn capabilities(profile: &Path, screen: Screen) -> WebDriverResult<ChromeCapabilities> {
    let mut chromium = ChromeCapabilities::new();
    chromium.add_arg("--headless=new")?;
    // Containers lack the privileges for the sandbox and a large /dev/shm.
    for argument in ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en-US"] {
        chromium.add_arg(argument)?;
    }
    chromium.add_arg(match screen {
        Screen::Desktop => "--window-size=1360,800",
        Screen::Phone => "--window-size=500,900",
        Screen::Documentation => "--window-size=1280,800",
    })?;
    chromium.add_arg(&format!("--user-data-dir={}", profile.join("profile").display()))?;
    Ok(chromium)
}
