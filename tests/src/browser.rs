//! A real browser, used as a person would use it: headless Chromium through WebDriver.
//!
//! - Whatever is clicked or read is waited for: a page is never asked too early, and never later than half a minute.
//! - What goes wrong inside (an exception, a refusal of the page's policy) is kept and asked for by [`Browser::troubles`].

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

use crate::process::free_addr;

/// How long a page may take to show what it should, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(25);

/// Keeps what goes wrong before the page's own first line runs.
const WATCH: &str = "window.__troubles = [];
    addEventListener('error', event => __troubles.push(String(event.message)));
    addEventListener('unhandledrejection', event => __troubles.push(String(event.reason)));
    addEventListener('securitypolicyviolation', event => __troubles.push(`policy: ${event.violatedDirective} ${event.blockedURI}`));";

/// The screen that a test is told on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    /// 1360 × 800.
    Desktop,
    /// 390 × 780, with fingers.
    Phone,
}

/// One window of a browser of its own; closed with its value.
pub struct Browser {
    runtime: Runtime,
    window: Option<WebDriver>,
    driver: Child,
    base: RefCell<String>,
    folder: TempDir,
}

impl Browser {
    /// A window on `http://{address}`, whose pages are asked for by their path.
    ///
    /// # Panics
    /// Chromium or its driver is missing (`tests/install-servers` installs both), or does not start.
    #[must_use]
    pub fn open(address: impl std::fmt::Display, screen: Screen) -> Self {
        let folder = tempfile::Builder::new().prefix("logweir-browser-").tempdir().expect("a temporary directory");
        let port = free_addr().port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: `prctl` is one system call and touches no memory. The driver, and with it its browser, ends with us.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let driver = command.spawn().expect("chromedriver starts: tests/install-servers installs it");
        // Its client is built with TLS, since the program's is, and asks the process for an implementation of it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let url = format!("http://127.0.0.1:{port}");
        let window = runtime.block_on(connect(&url, folder.path(), screen));
        let browser = Self { runtime, window: Some(window), driver, base: RefCell::default(), folder };
        *browser.base.borrow_mut() = format!("http://{address}");
        browser.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": WATCH }));
        let downloads = json!({ "behavior": "allow", "downloadPath": browser.folder.path() });
        browser.devtools("Browser.setDownloadBehavior", downloads);
        if screen == Screen::Phone {
            let metrics = json!({ "width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": true });
            browser.devtools("Emulation.setDeviceMetricsOverride", metrics);
            browser.devtools("Emulation.setTouchEmulationEnabled", json!({ "enabled": true }));
        }
        browser
    }

    /// Shows what is at `path`.
    pub fn goto(&self, path: &str) {
        let url = format!("{}{path}", self.base.borrow());
        self.run(self.window().goto(&url));
    }

    /// The path and query of what is shown now.
    #[must_use]
    pub fn path(&self) -> String {
        self.js("return location.pathname + location.search").as_str().unwrap_or_default().to_owned()
    }

    /// One step back.
    pub fn back(&self) {
        self.run(self.window().back());
    }

    /// Light or dark, as the system would say.
    pub fn scheme(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features);
    }

    /// Runs a function's body inside of the page.
    #[must_use]
    pub fn js(&self, body: &str) -> Value {
        self.run(async { Ok(self.window().execute(body, Vec::new()).await?.json().clone()) })
    }

    /// As [`Browser::js`], for what calls its last argument when it is done.
    #[must_use]
    pub fn js_later(&self, body: &str) -> Value {
        self.run(async { Ok(self.window().execute_async(body, Vec::new()).await?.json().clone()) })
    }

    /// Clicks on what `css` finds first.
    pub fn click(&self, css: &str) {
        self.trying(&format!("a click on {css}"), async |window: &WebDriver| {
            window.find(By::Css(css)).await?.click().await
        });
    }

    /// Clicks on the first of `css` whose text, label or title has `text`.
    pub fn click_on(&self, css: &str, text: &str) {
        self.trying(&format!("a click on {css} with {text:?}"), async |window: &WebDriver| {
            for element in window.find_all(By::Css(css)).await? {
                if named(&element).await?.contains(text) {
                    return element.click().await;
                }
            }
            window.find(By::Css("no-such-element")).await.map(|_| ())
        });
    }

    /// Replaces a field's text by what is typed.
    pub fn write(&self, css: &str, text: &str) {
        self.trying(&format!("writing into {css}"), async |window: &WebDriver| {
            let field = window.find(By::Css(css)).await?;
            field.clear().await?;
            field.send_keys(text).await
        });
    }

    /// Types into whatever has the focus.
    pub fn keys(&self, keys: &str) {
        self.trying("typing", async |window: &WebDriver| window.active_element().await?.send_keys(keys).await);
    }

    /// Sets a field that has a picker of its own, such as a date's.
    pub fn set(&self, css: &str, value: &str) {
        let _ = self.js(&format!(
            "const field = document.querySelector({css:?}); field.value = {value:?};
             field.dispatchEvent(new Event('input', {{ bubbles: true }}));"
        ));
    }

    /// Drags from one share of the width of what `css` finds to another.
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

    /// The texts of everything that `css` finds now.
    #[must_use]
    pub fn texts(&self, css: &str) -> Vec<String> {
        let found = self.js(&format!("return [...document.querySelectorAll({css:?})].map(one => one.innerText)"));
        let texts = found.as_array().into_iter().flatten();
        texts.map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The text of what `css` finds first; empty where there is nothing.
    #[must_use]
    pub fn text(&self, css: &str) -> String {
        self.texts(css).into_iter().next().unwrap_or_default()
    }

    /// How many elements `css` finds now.
    #[must_use]
    pub fn count(&self, css: &str) -> usize {
        self.texts(css).len()
    }

    /// Looks until `holds`.
    ///
    /// # Panics
    /// It does not in time; says what the page shows instead.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            if Instant::now() > deadline {
                let shown = self.text("body");
                panic!("not within {PATIENCE:?}: {what}; {} {:?} shows:\n{shown}", self.path(), self.troubles());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until something that `css` finds has this text.
    pub fn see(&self, css: &str, text: &str) {
        self.until(&format!("{text:?} in {css}"), |browser| {
            browser.texts(css).iter().any(|found| found.contains(text))
        });
    }

    /// Exceptions inside of the page, and what its policy has refused.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let found = self.js("return window.__troubles ?? []");
        found.as_array().into_iter().flatten().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Where the page's downloads lie.
    #[must_use]
    pub fn downloads(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path()).filter(|path| path.is_file());
        files.filter(|path| path.extension().is_some_and(|extension| extension != "crdownload")).collect()
    }

    /// Keeps a picture in the directory that `LOGWEIR_SCREENSHOTS` names; nothing without it.
    pub fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("LOGWEIR_SCREENSHOTS") else { return };
        let png = self.run(self.window().screenshot_as_png());
        std::fs::create_dir_all(&folder).expect("the directory of the pictures");
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), png).expect("a picture is written");
    }

    fn devtools(&self, command: &str, parameters: Value) {
        let _ = self.run(self.window().cdp().send_raw(command, parameters));
    }

    fn window(&self) -> &WebDriver {
        self.window.as_ref().expect("there until the end")
    }

    fn run<T>(&self, command: impl Future<Output = WebDriverResult<T>>) -> T {
        self.runtime.block_on(command).expect("the browser does what it is told")
    }

    /// Tries until it works: what is not there yet, or is being drawn anew, is soon.
    fn trying<F>(&self, what: &str, act: F)
    where
        F: AsyncFn(&WebDriver) -> WebDriverResult<()>,
    {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.runtime.block_on(act(self.window())) {
            if Instant::now() > deadline {
                let shown = self.text("body");
                panic!("{what}: {error}; {} {:?} shows:\n{shown}", self.path(), self.troubles());
            }
            std::thread::sleep(LOOK);
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

/// Text, label and title of an element.
async fn named(element: &WebElement) -> WebDriverResult<String> {
    let label = element.attr("aria-label").await?.unwrap_or_default();
    Ok(format!("{}\n{label}", element.text().await?))
}

async fn connect(url: &str, profile: &Path, screen: Screen) -> WebDriver {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match WebDriver::new(url, capabilities(profile, screen).expect("Chromium's options")).await {
            Ok(window) => return window,
            Err(error) => assert!(Instant::now() < deadline, "no session with Chromium: {error}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn capabilities(profile: &Path, screen: Screen) -> WebDriverResult<ChromeCapabilities> {
    let mut chromium = ChromeCapabilities::new();
    chromium.add_arg("--headless=new")?;
    // Containers have neither the sandbox's privileges nor a large /dev/shm.
    for argument in ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en-GB"] {
        chromium.add_arg(argument)?;
    }
    chromium.add_arg(match screen {
        Screen::Desktop => "--window-size=1360,800",
        Screen::Phone => "--window-size=500,900",
    })?;
    chromium.add_arg(&format!("--user-data-dir={}", profile.join("profile").display()))?;
    Ok(chromium)
}
